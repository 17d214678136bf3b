"""A tape: the ops that a function has dispatched, below autograd, as straight-line Python on memory that is planned once.

What modules, autograd and dispatch decided is decided. Memory that ops are handed to write to is planned in one arena when the
tape is made: blocks that are never needed at the same time share it. So replaying allocates little, and makes no view: a view of
planned memory is a tensor made once.
"""

from bisect import insort
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count

import torch
from torch import Tensor

from avfmae.engines.cpu.torch_private import (
    StorageWeakRef,
    TorchDispatchMode,
    callable_of,
    out_overload,
    schema,
    tree_iter,
    tree_map,
)  # fmt: skip

aten = torch.ops.aten
EMPTY = {aten.empty.memory_format, aten.empty_like.default, aten.new_empty.default}
# torch's ops whose out variant writes the result without a copy
OUT_VARIANTS = {aten.add.Tensor, aten.bmm.default, aten.cat.default, aten.gelu.default, aten.mm.default, aten.mul.Tensor}
UNDECLARED_WRITES = {aten.native_batch_norm.default: ("running_mean", "running_var")}  # writes that a schema does not tell of
ALIGNMENT = 64  # bytes


class GuardFailed(Exception):
    """A replay got another number than was recorded."""


def guard(number, recorded) -> None:
    if number != recorded:
        raise GuardFailed


def has_dynamic_shape(function: Callable, args: tuple) -> bool:
    """Whether the shape of an op's result follows from numbers, so that it may be another one in the next replay."""
    if function is aten.index.Tensor:
        return any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
    return torch.Tag.dynamic_output_shape in function.tags


@dataclass
class Block:
    """Memory that a recorded call has allocated: how large, and the calls between which it is needed, both included."""

    bytes: int
    first: int
    last: int = 0
    offset: int | None = None  # in the arena


@dataclass(eq=False)
class Value:
    """A tensor, or a number that was asked for: the block that it views and how, or the external tensor, from before the tape."""

    name: str
    block: Block | None = None
    view: tuple[torch.dtype, torch.Size, tuple[int, ...], int] | None = None  # dtype, shape, strides, offset
    external: Tensor | None = None

    @property
    def placed(self) -> bool:
        return self.block is not None and self.block.offset is not None

    def tensor(self, arena: Tensor) -> Tensor:
        dtype, shape, strides, offset = self.view
        block = arena[self.block.offset : self.block.offset + self.block.bytes].view(dtype)
        return block.as_strided(shape, strides, block.storage_offset() + offset)


@dataclass
class Call:
    """``results = function(*args, **kwargs)`` with values in place of tensors; a result that is None was known already.

    A call that ``has_side_effects`` is kept even if nobody reads its results.
    """

    function: Callable
    args: tuple
    kwargs: dict
    has_side_effects: bool = False
    results: list[Value | None] = field(default_factory=list)
    single: bool = True  # one result, not a tuple of one

    @property
    def reads(self) -> list[Value]:
        return values_in((self.args, self.kwargs))

    @property
    def writes(self) -> list[Value]:
        """Arguments that are changed."""
        if not self.has_side_effects or self.function is guard:
            return []
        arguments, more = schema(self.function).arguments, UNDECLARED_WRITES.get(self.function, ())
        given = dict(zip((a.name for a in arguments), self.args, strict=False)) | self.kwargs
        return values_in([given.get(a.name) for a in arguments if a.is_write or a.name in more])


def values_in(x) -> list[Value]:
    return [leaf for leaf in tree_iter(x) if isinstance(leaf, Value)]


class Recorder(TorchDispatchMode):
    """Writes down every op that is dispatched while it is active.

    A tensor is known by the memory that it views, since autograd gives what it has saved back as another object. What is neither
    an input nor any op's result is external: weights, moments, the schedule. Inputs are others in every replay.
    """

    def __init__(self, inputs: Sequence[Tensor]):
        super().__init__()
        self.static_shapes = True  # all shapes are the same whatever the numbers are; only then there is a tape
        self.calls: list[Call] = []
        self.numbers = count()
        self.values: dict[tuple, tuple[Value, StorageWeakRef]] = {}
        self.blocks: dict[int, tuple[Block | None, StorageWeakRef]] = {}
        self.inputs = [self.new_value(t, None) for t in inputs]

    @staticmethod
    def place(t: Tensor) -> tuple:
        return t.untyped_storage().data_ptr(), t.dtype, t.shape, t.stride(), t.storage_offset()

    def new_value(self, t: Tensor, block: Block | None, external: Tensor | None = None) -> Value:
        storage, view = t.untyped_storage(), self.place(t)[1:]
        value = Value(f"v{next(self.numbers)}", block, view, external)
        self.values[self.place(t)] = value, StorageWeakRef(storage)
        self.blocks[storage.data_ptr()] = block, StorageWeakRef(storage)
        return value

    def known(self, t: Tensor) -> Value | None:
        value, memory = self.values.get(self.place(t), (None, None))
        return None if memory is None or memory.expired() else value

    def value_of(self, x):
        """A tensor's value; what is no tensor stays what it is."""
        if not isinstance(x, Tensor):
            return x
        if (value := self.known(x)) is None:
            value = self.new_value(x, None, x.detach())
        return value

    def result(self, t: Tensor | None) -> Value | None:
        """The value of a call's result, unless it is known."""
        if t is None or self.known(t):
            return None
        storage = t.untyped_storage()
        block, memory = self.blocks.get(storage.data_ptr(), (None, None))
        if memory is None or memory.expired():
            block = Block(storage.nbytes(), len(self.calls))
        return self.new_value(t, block)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = [x for x in tree_iter((args, kwargs)) if isinstance(x, Tensor)]
        if function.is_view and not any((v := self.known(x)) and v.external is None for x in given):
            return function(*args, **kwargs)  # a view of an external tensor is external
        self.static_shapes = self.static_shapes and not has_dynamic_shape(function, args)
        has_side_effects = schema(function).is_mutable or function in UNDECLARED_WRITES
        call = Call(function, *tree_map(self.value_of, (args, kwargs)), has_side_effects)
        out = function(*args, **kwargs)
        results = [x for x in tree_iter(out) if isinstance(x, Tensor)]
        if not has_side_effects and (all(map(self.known, results)) if results else not given):
            return out  # the same tensor once more; or a fact that no number changes
        call.single = not isinstance(out, (tuple, list))
        if results:
            call.results = [self.result(x) for x in ([out] if call.single else out)]
        elif out is not None:
            call.results = [Value(f"v{next(self.numbers)}")]
        self.calls.append(call)
        if call.results and not results:
            self.calls.append(Call(guard, (call.results[0], out), {}, has_side_effects=True))
        return out


@dataclass
class Tape:
    """Made by :meth:`of`; ``play(*inputs)`` does what was recorded.

    Attributes:
        play: gives what the recorded function gave; the next call may overwrite it.
        written: external tensors that the tape writes: weights, moments, counters.
        written_before_last_guard: those of them that are written before the last guard; they are restored when a guard fails.
        arena: the planned memory.
    """

    play: Callable[..., dict[str, Tensor]]
    written: list[Tensor]
    written_before_last_guard: list[Tensor]
    arena: Tensor

    @classmethod
    def of(cls, recorder: Recorder, outputs: dict[str, Tensor]) -> "Tape":
        """Of what a recorder has seen, while its outputs are still there."""
        returned = {key: recorder.value_of(t) for key, t in outputs.items()}
        calls = eliminate_dead_calls(recorder.calls, returned.values())
        guards = [number for number, call in calls.items() if call.function is guard]
        last = max(guards, default=0)
        written = {v: None for call in calls.values() for v in call.writes if v.external is not None}
        early = {v: None for number, call in calls.items() if number < last for v in call.writes if v.external is not None}
        arena = plan_memory(calls, returned.values())
        play = generate_code(calls, recorder.inputs, returned, arena)
        return cls(play, [v.external for v in written], [v.external for v in early], arena)


def eliminate_dead_calls(calls: Sequence[Call], returned: Iterable[Value]) -> dict[int, Call]:
    """The calls that have side effects, or whose results are read, by number."""
    needed, kept = set(returned), {}
    for number, call in reversed(list(enumerate(calls))):
        if call.has_side_effects or not needed.isdisjoint(call.results):
            needed.update(call.reads)
            kept[number] = call
    return dict(reversed(kept.items()))


def out_variant(call: Call) -> Callable | None:
    """The op that writes a call's results where it is told to, if it is one of ours, or one of torch's that gain by it."""
    ours = str(call.function).startswith("avfmae.")
    return out_overload(call.function) if (ours or call.function in OUT_VARIANTS) and None not in call.results else None


def plan_memory(calls: dict[int, Call], returned: Iterable[Value]) -> Tensor:
    """Gives a place in one arena to every block that can have one."""
    for number, call in calls.items():
        for block in blocks_of([*call.reads, *call.results]):
            block.last = number
    for block in blocks_of(returned):
        block.last = max(calls, default=0) + 1
    planned: list[Block] = []
    for number, call in calls.items():
        if call.function in EMPTY or out_variant(call):
            planned += [block for block in blocks_of(call.results) if block.first == number]
    top, placed = 0, []
    for block in sorted(planned, key=lambda block: -block.bytes):  # the largest first: at the lowest place that is free meanwhile
        begin = 0
        for other in [other for other in placed if other.first <= block.last and block.first <= other.last]:
            if begin + block.bytes <= other.offset:
                break
            begin = max(begin, other.offset + aligned(other.bytes))
        block.offset, top = begin, max(top, begin + aligned(block.bytes))
        insort(placed, block, key=lambda block: block.offset)
    return torch.empty(top, dtype=torch.uint8)


def aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def blocks_of(values: Iterable[Value | None]) -> list[Block]:
    return list({id(v.block): v.block for v in values if v is not None and v.block is not None}.values())


def generate_code(calls: dict[int, Call], inputs: Sequence[Value], returned: dict[str, Value], arena: Tensor) -> Callable:
    """The calls as a Python function, in which values that have no fixed place are dropped after their last use."""
    scope: dict[str, object] = {}

    def term(x) -> str:
        if isinstance(x, (list, tuple)):
            return f"[{', '.join(map(term, x))}]"
        if x is None or type(x) in (bool, int):
            return str(x)
        if not isinstance(x, Value):
            scope[f"k{id(x)}"] = x
            return f"k{id(x)}"
        if x.external is not None:
            scope[x.name] = x.external
        elif x.placed and x.name not in scope:
            scope[x.name] = x.tensor(arena)
        return x.name

    lines = [f"return {{{', '.join(f'{key!r}: {term(v)}' for key, v in returned.items())}}}"]
    needed = {*returned.values(), *inputs}
    for number, call in reversed(calls.items()):
        results = [v for v in call.results if v is not None]
        placed, op = bool(results) and all(v.placed for v in results), out_variant(call)
        if placed and not call.has_side_effects and (call.function in EMPTY or all(v.block.first < number for v in results)):
            continue  # memory, or views of it
        dead = {v for v in (*call.reads, *results) if v.external is None and not v.placed} - needed
        if dead:
            lines.append(f"del {', '.join(v.name for v in dead)}")
        needed.update(call.reads)
        given = call.kwargs
        if op:
            outs = schema(op).arguments[len(schema(call.function).arguments) :]
            given = given | dict(zip((a.name for a in outs), results, strict=True))
        arguments = [term(x) for x in call.args] + [f"{k}={term(x)}" for k, x in given.items()]
        line = f"{term(callable_of(op or call.function))}({', '.join(arguments)})"
        if results and not op:
            targets = [term(v) if v is not None else "_" for v in call.results]
            line = f"{', '.join(targets)}{' = ' if call.single else ', = '}{line}"
        lines.append(line)
    body = "\n    ".join(reversed(lines))
    exec(f"def play({', '.join(v.name for v in inputs)}):\n    {body}", scope)
    return scope["play"]
