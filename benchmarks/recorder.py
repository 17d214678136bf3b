"""What a training step asks of a GPU: every launch with its bytes and operations, recorded on tensors without memory.

Bytes are those of the tensors that a kernel reads and writes, each once: what has to move if nothing stays in a cache. Views and
allocations are no launches. Multi-tensor kernels are cut up as torch cuts them.
"""

import math
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import avfmae

VIEWS = {
    "_reshape_alias", "_unsafe_view", "alias", "as_strided", "detach", "diagonal", "expand", "lift_fresh", "permute", "reshape",
    "select", "slice", "split", "split_with_sizes", "squeeze", "t", "transpose", "unbind", "unfold", "unsqueeze", "view",
    "view_as_real",
}  # fmt: skip
NO_KERNEL = {
    "device", "empty", "empty_like", "empty_permuted", "empty_strided", "is_same_size", "new_empty", "new_empty_strided",
    "promote_types", "record_stream", "set_", "sym_size",
}  # fmt: skip
OVERWRITES = {"copy_", "fill_", "zero_", "_foreach_copy_", "_foreach_zero_"}  # what they write they do not read
# op: how many operations its products take, of the shapes of its inputs and outputs; multiply and add counted
PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward"}
MULTI_TENSOR = ("_foreach", "_fused", "_amp_foreach")
LONG_ATTENTION = "_scaled_dot_product_flash_attention_for_cpu"  # the CPU's name of what is flash attention on a GPU
ROOT = Path(avfmae.__file__).resolve().parents[1]
PLACES = (
    f"{Path(avfmae.__file__).parent}{os.sep}",
    f"{Path(__file__).parent / 'peers'}{os.sep}",
)  # where models and steps are written
# Of torch's multi_tensor_apply: tensors a launch by number of lists, blocks a launch, numbers a block.
TENSORS_A_LAUNCH, BLOCKS_A_LAUNCH, CHUNK = {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}, 320, 65536
TENSORS_A_CAT = 128
ADAMW_TENSORS, ADAMW_COPIES = 480, 5  # tensors a launch (csrc/cuda/adamw.cu); which argument is only written


@dataclass
class Launch:
    """Calls of one op that a step makes: one kernel, or as many as torch cuts a multi-tensor op into."""

    op: str
    group: str
    line: str  # of the source that asked for it, as file:line; of a gradient, that of the forward pass
    backward: bool
    launches: int
    read: int  # bytes
    written: int
    flop: float
    shapes: list[tuple[int, ...]]
    inputs: frozenset[int] = field(repr=False)  # storages, by number
    outputs: frozenset[int] = field(repr=False)

    @property
    def bytes(self) -> int:
        return self.read + self.written


class Recorder(TorchDispatchMode):
    """Inside it every launch is appended to ``launches``. Enter a ``FakeTensorMode`` before.

    Attributes:
        peak: most bytes of what was there at once beside ``resident``.

    Args:
        true: by a mask (bool), how many of its places are True: a boolean index has as many rows, which tensors without memory
            do not know.
        resident: what is there all the time.
    """

    def __init__(self, true: Sequence[tuple[Tensor, int]] = (), resident: Sequence[Tensor] = ()):
        super().__init__()
        self.launches: list[Launch] = []
        self.lines: dict[int, str] = {}  # by autograd's sequence number
        self.storages: dict[int, tuple[int, StorageWeakRef, int]] = {}  # by address: a number, the storage, its bytes
        self.named, self.peak = 0, 0
        self.resident = {t.untyped_storage()._cdata: t for t in resident}
        self.true = {self.number(mask): count for mask, count in true}
        self.masks = [mask for mask, _ in true]  # held, so that their numbers stay theirs

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        op = func.name().partition("::")[2].partition(".")[0]
        if op == "index" and (indices := args[1])[0].dtype == torch.bool:
            index = indices[0]
            out = args[0].new_empty(self.true[self.number(index)], *args[0].shape[index.ndim :])
        elif op == "_local_scalar_dense":
            return 1.0
        elif op.startswith(MULTI_TENSOR) and not func._schema.returns:
            out = None  # changes numbers, which nobody has here
        else:
            out = func(*args, **kwargs)
        if op == "bitwise_not" and out is not None and (known := self.true.get(self.number(args[0]))) is not None:
            self.true[self.number(out)] = args[0].numel() - known
            self.masks.append(out)
        node = torch._C._current_autograd_node()
        if node is None:
            self.lines.setdefault(torch.autograd._get_sequence_nr() - 1, source_line())
        if op not in VIEWS | NO_KERNEL and "AccumulateGrad" not in (node.name() if node else ""):
            self.record(func, op, args, kwargs, out, node)
        return out

    def record(self, func, op, args, kwargs, out, node) -> None:
        line = source_line() if node is None else self.lines.get(node._sequence_nr(), source_line())
        inputs, outputs = tensors([args, kwargs]), tensors(out)
        written = written_arguments(func, args, kwargs)
        ours = func.namespace == "avfmae"
        unread = {id(t) for t in written} if ours or op in OVERWRITES else set()
        if op == "adamw":
            unread = {id(t) for t in args[ADAMW_COPIES]}
        read = [t for t in inputs if id(t) not in unread]
        written = list({id(t): t for t in [*outputs, *written]}.values())
        size_read, size_written = sum(map(touched, read)), sum(map(touched, written))
        if op in ("gather", "index", "index_select", "embedding"):  # rows that are not chosen are not read
            size_read = min(size_read, 2 * size_written)
        self.launches.append(
            Launch(
                op, group_of(op, ours), line, node is not None, launches(op, args, inputs), size_read, size_written,
                operations(op, args, out), [tuple(t.shape) for t in inputs[:6]],
                frozenset(map(self.number, read)), frozenset(map(self.number, written)),
            )
        )  # fmt: skip
        if len(self.launches) % 16 == 0:
            self.count_memory()

    def number(self, t: Tensor) -> int:
        """Of a tensor's storage: no two have the same, as addresses of storages that are gone have."""
        storage = t.untyped_storage()
        known = self.storages.get(storage._cdata)
        if known is None or known[1].expired():
            self.named += 1
            size = 0 if storage._cdata in self.resident else storage.nbytes()
            known = self.storages[storage._cdata] = self.named, StorageWeakRef(storage), size
        return known[0]

    def count_memory(self) -> None:
        self.storages = {address: known for address, known in self.storages.items() if not known[1].expired()}
        self.peak = max(self.peak, sum(size for _, _, size in self.storages.values()))


def tensors(tree) -> list[Tensor]:
    """Those of a tree, each once."""
    return list({id(t): t for t in tree_leaves(tree) if isinstance(t, Tensor)}.values())


def touched(t: Tensor) -> int:
    """Bytes of the numbers that are there: broadcast ones are there once."""
    return math.prod(n for n, stride in zip(t.shape, t.stride(), strict=True) if stride) * t.element_size()


def written_arguments(func, args, kwargs) -> list[Tensor]:
    schema = func._schema.arguments
    given = [*zip(schema, args, strict=False), *((a, kwargs[a.name]) for a in schema if a.name in kwargs)]
    return [t for a, value in given if a.alias_info is not None and a.alias_info.is_write for t in tensors(value)]


def source_line() -> str:
    """The innermost line of a model or a training step that is running; "" where there is none."""
    frame, here = sys._getframe(1), __file__
    while frame:
        path = frame.f_code.co_filename
        if path != here and path.startswith(PLACES):
            return f"{os.path.relpath(path, ROOT)}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def group_of(op: str, ours: bool) -> str:
    if op in PRODUCTS:
        return "products"
    if op.startswith(MULTI_TENSOR):
        return "norm and update"
    if op.startswith(LONG_ATTENTION):
        return "long attention"
    if ours:
        name = op.removesuffix("_triton").removesuffix("_backward")
        return {
            "region_attention": "short attention", "cross_attention": "short attention", "column_sum": "sums",
            "adamw": "norm and update",
        }.get(name, name)  # fmt: skip
    if op.startswith("gelu"):
        return "gelu"
    if op in ("sum", "mean"):
        return "sums"
    if op.startswith(("native_layer_norm", "_softmax", "native_batch_norm")):
        return "norms and softmax"
    return "adds, casts, copies"


def launches(op: str, args, inputs: list[Tensor]) -> int:
    """Kernels that torch launches for a call."""
    if op.startswith(MULTI_TENSOR):
        lists = [a for a in args if isinstance(a, (list, tuple)) and a and isinstance(a[0], Tensor)]
        if any(len({t.dtype for t in one}) > 1 for one in lists):
            return len(lists[0])  # the slow way, a tensor at a time
        many = multi_tensor_launches([t.numel() for t in lists[0]], len(lists))
        return many + math.ceil(len(lists[0]) / TENSORS_A_LAUNCH[1]) if op == "_foreach_norm" else many
    if op == "adamw":  # and one more that counts the steps
        return 2 * math.ceil(len(args[0]) / ADAMW_TENSORS)
    if op in ("cat", "stack"):
        return math.ceil(len(inputs) / TENSORS_A_CAT)
    return {"native_batch_norm": 2, "native_batch_norm_backward": 2, "convolution_backward": 3}.get(op, 1)


def multi_tensor_launches(numels: list[int], lists: int) -> int:
    """As ``multi_tensor_apply`` of ATen/native/cuda/MultiTensorApply.cuh packs chunks of tensors into launches."""
    most, count, held, blocks = TENSORS_A_LAUNCH[min(lists, 5)], 0, 0, 0
    for numel in numels:
        held += 1
        for chunk in range(chunks := math.ceil(numel / CHUNK)):
            blocks += 1
            last = chunk == chunks - 1
            if blocks == BLOCKS_A_LAUNCH or (held == most and last):
                count, blocks, held = count + 1, 0, 0 if last else 1
    return count + (blocks > 0)


def operations(op: str, args, out) -> float:
    """Multiplications and additions of an op's matrix products."""
    if op in ("mm", "bmm"):
        return 2 * args[0].numel() * args[1].shape[-1]
    if op in ("addmm", "baddbmm"):
        return 2 * args[1].numel() * args[2].shape[-1]
    if op == "convolution":
        return 2 * out.numel() * args[1][0].numel()
    if op == "convolution_backward":  # to the weight; a clip needs no gradient
        return 2 * args[0].numel() * args[2][0].numel()
    name, backward = op.removesuffix("_triton").removesuffix("_backward"), "_backward" in op
    if name == "region_attention":
        qkv = args[backward]
        return (10 if backward else 4) * qkv.numel() // 3 * qkv.shape[1]
    if name == "cross_attention":
        q, kv = args[backward : backward + 2]
        return (10 if backward else 4) * q.numel() * kv.shape[1]
    if name.startswith(LONG_ATTENTION):
        q, k = args[backward : backward + 2]
        return (10 if backward else 4) * q.numel() * k.shape[2]
    return 0


def fused(calls: Sequence[Launch]) -> Iterator[Launch]:
    """What a good compiler would make of the launches: everything between products, attention and sums over rows in as few passes
    as the order of what depends on what allows, each reading and writing only what others made or need.
    """
    kept = ("products", "long attention", "short attention", "norm and update", "sums")
    groups: list[list[Launch]] = []
    maker: dict[int, int] = {}  # storage -> group that wrote it last
    before: list[int] = []  # of each group, the groups that it needs, as bits
    for call in calls:
        sources = {maker[s] for s in call.inputs if s in maker}
        needed = 0
        for s in sources:
            needed |= before[s] | 1 << s
        home = None
        if call.group not in kept:
            for g in sorted(sources, reverse=True):
                others = 0
                for s in sources - {g}:
                    others |= before[s] | 1 << s
                if groups[g][0].group not in kept and not others >> g & 1:
                    home = g
                    break
        if home is None:
            groups.append([])
            before.append(0)
            home = len(groups) - 1
        groups[home].append(call)
        before[home] |= needed & ~(1 << home)
        for s in call.outputs:
            maker[s] = home
    readers: dict[int, set[int]] = {}
    for g, members in enumerate(groups):
        for call in members:
            for s in call.inputs:
                readers.setdefault(s, set()).add(g)
    for g, members in enumerate(groups):
        if len(members) == 1:
            yield members[0]
            continue
        written = frozenset().union(*(c.outputs for c in members))
        read = sum(share(c.read, c.inputs, c.inputs - written) for c in members)
        kept_out = frozenset(s for s in written if s not in readers or readers[s] - {g})  # also what nobody reads: results
        out = sum(share(c.written, c.outputs, c.outputs & kept_out) for c in members)
        first = members[0]
        yield Launch(
            "fused", "fused by a compiler", first.line, first.backward, 1, read, out, sum(c.flop for c in members), first.shapes,
            frozenset().union(*(c.inputs for c in members)) - written, kept_out,
        )  # fmt: skip


def share(size: int, all_of: frozenset, some: frozenset) -> int:
    return size * len(some) // len(all_of) if all_of else 0
