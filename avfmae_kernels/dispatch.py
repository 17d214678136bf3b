"""What the ops are, which implementation of an op runs, and the sentence that says why not another.

Every op registers itself in its own folder: the schema of ``avfmae::<name>``, its reference, and what its kernels need. The
compiled modules give ``avfmae::<name>`` its C++ and CUDA kernels; ``avfmae::<name>_triton`` is its Triton twin under the same
schema. Both are defined here, so that importing and tracing work without a compiled module.
"""

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from avfmae_kernels import chip, measured, processor
from avfmae_kernels import device as device_kind
from avfmae_kernels.compiled import MISSING

# In the order that "auto" prefers them; on a GPU, where it was measured, in the order of measured.csv.
IMPLEMENTATIONS = ("triton", "cuda", "cpp", "reference")
CHOICES = ("auto", *IMPLEMENTATIONS)

TRITON_INSTALLED = importlib.util.find_spec("triton") is not None
TRITON_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
TRITON_USABLE = TRITON_INSTALLED and (TRITON_INTERPRETED or torch.version.cuda is not None)


@dataclass(frozen=True)
class Op:
    """An op as the dispatch knows it; :func:`register` describes the attributes."""

    name: str
    schema: str
    reference: Callable | None
    compiled: frozenset[str]  # devices that a compiled module has a kernel for
    triton: str
    cuda_alone: bool
    cpu_levels: tuple[str, ...]
    host: bool
    strict: bool


OPS: dict[str, Op] = {}
# By op and device the implementations that run and are fast, the best first. Constant after import, so that torch.compile can
# trace the dispatch.
AUTOMATIC: dict[tuple[str, str], tuple[str, ...]] = {}
library = torch.library.Library("avfmae", "DEF")


def register(
    name: str, schema: str = "", reference: Callable | None = None, *, fake: Callable | None = None, triton: str = "",
    out: bool = False, cuda_alone: bool = False,
    cpu_levels: tuple[str, ...] = processor.LEVELS, host: bool = False, strict: bool = True,
) -> None:  # fmt: skip
    """Defines an op. Called once, in the op's folder.

    Args:
        schema: arguments and results, without the name.
        reference: computes the op in PyTorch; None where the public function composes it.
        fake: gives empty results of the right shape, for tracing; None: the reference traces.
        triton: the module of the op's Triton kernel, a function that is named like the op; empty: it has none.
        out: the op has a second overload ``out``, which writes the results into tensors that are given, on CPUs.
        cuda_alone: CUDA C++ has the op's only kernel for a GPU, which is what a traced step counts.
        cpu_levels: processors (:data:`avfmae_kernels.processor.LEVELS`) on which the C++ kernel is faster than PyTorch; on others
            "auto" leaves the op to PyTorch.
        host: the op takes NumPy arrays, is no op of torch, and its C++ lies in the host module.
        strict: :func:`use` raises where the named implementation cannot run. Otherwise "auto" decides there: for the optimiser
            and for data workers, which are not what a choice for the model's ops is about.
    """
    if host:
        compiled = frozenset() if MISSING["host"] else frozenset({"cpu"})
    else:
        traced = fake or (lambda *args: tree_map(Tensor.contiguous, reference(*args)))  # pyright: ignore[reportOptionalCall]
        for op in (name, f"{name}_triton")[: 2 if triton else 1]:
            library.define(op + schema, tags=(torch.Tag.pt2_compliant_tag,))
            torch.library.register_fake(f"avfmae::{op}", traced, lib=library)
        if triton and TRITON_USABLE:  # importing triton takes a second
            load_triton(name, triton)
        if out:
            arguments, _, results = schema.partition(") -> ")
            outs = "".join(f", Tensor({letter}!) out_{letter}" for letter, _ in zip("xyz", results.split(","), strict=False))
            library.define(f"{name}.out{arguments}{outs}) -> ()")
        has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
        compiled = frozenset(d for d in ("cpu", "cuda") if has_kernel(f"avfmae::{name}", d.upper()))
    OPS[name] = op = Op(name, schema, reference, compiled, triton, cuda_alone, cpu_levels, host, strict)
    for device in ("cpu", "cuda"):
        AUTOMATIC[name, device] = _automatic(op, device)


@functools.cache
def load_triton(name: str, module: str) -> None:
    """Gives an op its Triton kernel. CPU tensors reach it only under the interpreter."""
    for key in ("CPU", "CUDA"):
        library.impl(f"{name}_triton", getattr(importlib.import_module(module), name), key)


def register_gradient(name: str, save: Callable, gradient: Callable) -> None:
    """Gives an op and its Triton twin the same gradient (the reference is PyTorch, and has its own)."""
    for op in (name, f"{name}_triton"):
        torch.library.register_autograd(f"avfmae::{op}", gradient, setup_context=save, lib=library)


def register_backward_op(name: str, count: int, *constants) -> None:
    """Makes the op ``<name>_backward`` the gradient of an op.

    It takes the upstream gradient, the op's own arguments and ``constants``. Its first ``count`` results are the gradients to the
    op's first arguments; others get none.
    """

    def save(ctx, inputs, output):
        ctx.save_for_backward(*(x for x in inputs if isinstance(x, Tensor)))
        ctx.arguments = [None if isinstance(x, Tensor) else (x,) for x in inputs]

    def gradient(ctx, grad):
        saved = iter(ctx.saved_tensors)
        arguments = [next(saved) if x is None else x[0] for x in ctx.arguments]
        grads = call(f"{name}_backward", grad.device, grad.contiguous(), *arguments, *constants)
        grads = (grads,) if isinstance(grads, Tensor) else grads[:count]
        return *grads, *[None] * (len(arguments) - count)

    register_gradient(name, save, gradient)


def why_not(name: str, implementation: str, device: str) -> str | None:
    """None if ``implementation`` of an op runs on tensors of ``device`` ("cpu" or "cuda"), else the reason why not."""
    op = OPS[name]
    if implementation == "reference":
        return None
    if implementation == "triton":
        if not op.triton:
            return "it has no Triton kernel"
        if not TRITON_INSTALLED:
            return "triton is not installed"
        if device != "cuda" and not TRITON_INTERPRETED:
            return "Triton needs a GPU (or TRITON_INTERPRET=1, set before import, for its interpreter)"
        return None
    needed = {"cpp": "cpu", "cuda": "cuda"}[implementation]
    if device != needed:
        return f"runs on {needed} tensors only"
    if missing := MISSING["host" if op.host else device]:
        return missing
    if device not in op.compiled:
        return "it has no CUDA C++ kernel" if device == "cuda" else "it has no C++ kernel for this processor"
    return None


def _automatic(op: Op, device: str) -> tuple[str, ...]:
    """The implementations that run and are fast, the best first. What a GPU's generation allows is asked at the call."""
    slow = {"triton"} if device == "cpu" else set()  # its interpreter is for proving kernels
    if processor.LEVEL not in op.cpu_levels:
        slow.add("cpp")
    return tuple(i for i in IMPLEMENTATIONS if i not in slow and why_not(op.name, i, device) is None)


def _checked(choice: str, source: str) -> str:
    if choice not in CHOICES:
        raise ValueError(f"{source}: got {choice!r}, expected one of {', '.join(CHOICES)}")
    return choice


_choice = _checked(os.environ.get("AVFMAE_KERNELS", "auto"), "environment AVFMAE_KERNELS")


@contextmanager
def use(choice: str) -> Iterator[None]:
    """Chooses the implementation of every op inside a ``with`` block.

    Args:
        choice: ``"auto"`` (the fastest that can run), ``"reference"``, ``"cpp"``, ``"triton"`` or ``"cuda"``.
            A named one that cannot run raises at the op's call; nothing falls back in silence.
    """
    global _choice
    previous, _choice = _choice, _checked(choice, "avfmae_kernels.use")
    try:
        yield
    finally:
        _choice = previous


def chosen() -> str:
    """What :func:`use` or the environment has chosen."""
    return _choice


def uses_reference() -> bool:
    """Whether the reference was asked for by name."""
    return _choice == "reference"


def compiled_runs(name: str, device: torch.device) -> bool:
    """Whether a compiled kernel of an op can run on ``device`` under the current choice."""
    implementation = "cuda" if device.type == "cuda" else "cpp"
    return _choice in ("auto", implementation) and why_not(name, implementation, device.type) is None


def choose(name: str, device: torch.device, args: tuple = ()) -> str:
    """The implementation of an op that runs on ``device``, on a GPU for these arguments, under the current choice."""
    if capability := device_kind.pretended():
        op = OPS[name]
        order = ("triton", "reference") if op.triton else ("cuda", "reference") if op.cuda_alone else ("reference",)
        if _choice == "reference":
            return _choice
        return next(i for i in order if chip.why_not(name, i, capability, args) is None)
    order = AUTOMATIC.get((name, device.type), ("reference",))
    on_gpu = device.type == "cuda"
    capability = chip.compute_capability(device.index) if on_gpu else 0
    if _choice != "auto":
        reason = why_not(name, _choice, device.type)
        if reason is None and on_gpu:
            reason = chip.why_not(name, _choice, capability, args)
        if reason is None:
            return _choice
        if OPS[name].strict:
            raise RuntimeError(f"{name}: implementation {_choice!r} was asked for, but {reason}")
    if not on_gpu:
        return order[0]
    order = measured.ordered(name, order, capability, args)
    return next(i for i in order if chip.why_not(name, i, capability, args) is None)


def run_reference(reference: Callable, device: torch.device, *args):
    """Runs a reference as a compiled kernel would be: it sees no autocast."""
    if not torch.is_autocast_enabled(device.type):  # an export keeps the block below, and torch 2.13 cannot read some of them
        return reference(*args)
    with torch.autocast(device.type, enabled=False):
        return reference(*args)


def call(name: str, device: torch.device, *args) -> Tensor:
    """Runs an op on checked arguments with the implementation that :func:`choose` names."""
    implementation = choose(name, device, args)
    if implementation == "reference":
        reference = OPS[name].reference
        assert reference is not None, f"{name} has no reference"
        return run_reference(reference, device, *args)
    return op_of(name, implementation)(*args)


def op_of(name: str, implementation: str) -> Callable:
    """torch's op behind an implementation that is not the reference."""
    return getattr(torch.ops.avfmae, f"{name}_triton" if implementation == "triton" else name)


def explain() -> dict[str, dict[str, str]]:
    """Per op and implementation: ``"runs"``, ``"can run"``, or the reason why it cannot, on this machine's best device."""
    best, table = "cuda" if torch.cuda.is_available() else "cpu", {}
    for name, op in OPS.items():
        if name.removesuffix("_backward") in set(OPS) - {name}:  # is as its forward is
            continue
        device = "cpu" if op.host else best
        runs = choose(name, torch.device(device))
        reasons = {i: why_not(name, i, device) for i in IMPLEMENTATIONS}
        if device == "cuda":
            capability = chip.compute_capability(None)
            reasons = {i: reason or chip.why_not(name, i, capability) for i, reason in reasons.items()}
        table[name] = {i: "runs" if i == runs else reason or "can run" for i, reason in reasons.items()}
    return table
