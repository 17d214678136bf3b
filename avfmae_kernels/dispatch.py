"""Which implementation of an op runs, and the sentence that says why not another."""

import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from avfmae_kernels import chip, processor
from avfmae_kernels.compiled import MISSING
from avfmae_kernels.schemas import SCHEMAS, WITHOUT_TRITON, library

IMPLEMENTATIONS = ("triton", "cuda", "cpp", "reference")  # in the order that "auto" prefers them, but for CUDA_FIRST
CHOICES = ("auto", *IMPLEMENTATIONS)
# Triton is preferred where an op has both: its kernels know their shape when they are compiled, and are tuned on the chip that
# they run on. None of it has been measured on a GPU; the exceptions are ops whose Triton kernel does more work by its design.
CUDA_FIRST = {
    "masked_patch_loss": "reads, or resamples, every pixel once; Triton twice for each channel",
    "masked_patch_loss_backward": "as masked_patch_loss",
    "gather_patches": "resamples a pixel's three channels together; Triton works out the filter's weights for each",
}

TRITON_INSTALLED = importlib.util.find_spec("triton") is not None
TRITON_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
TRITON_USABLE = TRITON_INSTALLED and (TRITON_INTERPRETED or torch.version.cuda is not None)

# (op, device) pairs that the compiled module serves. All of these are constants, so that torch.compile can trace dispatch.
COMPILED = {
    (op, device)
    for op in SCHEMAS
    for device in ("cpu", "cuda")
    if torch._C._dispatch_has_kernel_for_dispatch_key(f"avfmae::{op}", device.upper())
}


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


def plain() -> bool:
    """Whether the reference was asked for by name."""
    return _choice == "reference"


def why_not(op: str, implementation: str, device: str) -> str | None:
    """None if ``implementation`` of ``op`` runs on tensors of ``device`` ("cpu" or "cuda"), else the reason why not."""
    if implementation == "reference":
        return None
    if implementation == "triton":
        if op in WITHOUT_TRITON:
            return "it has no Triton kernel"
        if not TRITON_INSTALLED:
            return "triton is not installed"
        if device != "cuda" and not TRITON_INTERPRETED:
            return "Triton needs a GPU (or TRITON_INTERPRET=1, set before import, for its interpreter)"
        return None
    needed = {"cpp": "cpu", "cuda": "cuda"}[implementation]
    if device != needed:
        return f"runs on {needed} tensors only"
    if MISSING[device]:
        return MISSING[device]
    if device == "cpu" and op in ("matmul_bf16", "matmul_adamw") and not processor.has("avx512_bf16"):
        return "this processor does not multiply bfloat16 (AVX512-BF16)"
    if (op, device) not in COMPILED:
        return f"it has no {'C++' if device == 'cpu' else 'CUDA C++'} kernel"
    return None


def _automatic(op: str, device: str) -> tuple[str, ...]:
    """The implementations that run and are fast, the best first; which of them a chip can run is asked at the call.

    Triton's interpreter is for proving kernels.
    """
    order = sorted(IMPLEMENTATIONS, key=lambda i: i != "cuda") if op in CUDA_FIRST else IMPLEMENTATIONS
    return tuple(i for i in order if (i, device) != ("triton", "cpu") and why_not(op, i, device) is None)


AUTOMATIC = {(op, device): _automatic(op, device) for op in SCHEMAS for device in ("cpu", "cuda")}


def choose(op: str, device: torch.device, args: tuple = ()) -> str:
    """The implementation that runs for ``op`` on ``device``, on a GPU for these arguments, under the current choice."""
    if device.type != "cuda":
        if _choice == "auto":
            return AUTOMATIC.get((op, device.type), ("reference",))[0]
        reason = why_not(op, _choice, device.type)
    else:
        capability = chip.compute_capability(device.index)
        if _choice == "auto":
            for implementation in AUTOMATIC[op, "cuda"]:
                if chip.why_not(op, implementation, capability, args) is None:
                    return implementation
        reason = why_not(op, _choice, device.type) or chip.why_not(op, _choice, capability, args)
    if reason:
        raise RuntimeError(f"{op}: implementation {_choice!r} was asked for, but {reason}")
    return _choice


def run_reference(reference: Callable, device: torch.device, *args):
    """Runs a reference as a compiled kernel would be: it sees no autocast."""
    with torch.autocast(device.type, enabled=False):
        return reference(*args)


def call(op: str, reference: Callable, device: torch.device, *args) -> torch.Tensor:
    """Runs ``op`` on checked arguments with the implementation that :func:`choose` names."""
    implementation = choose(op, device, args)
    if implementation == "reference":
        return run_reference(reference, device, *args)
    if implementation == "triton":
        return getattr(torch.ops.avfmae, f"{op}_triton")(*args)
    return getattr(torch.ops.avfmae, op)(*args)


def register_gradient(op: str, save: Callable, gradient: Callable) -> None:
    """Gives an op and its Triton twin the same gradient (the reference is plain PyTorch, and has its own)."""
    for name in (op, f"{op}_triton"):
        torch.library.register_autograd(f"avfmae::{name}", gradient, setup_context=save, lib=library)


def explain() -> dict[str, dict[str, str]]:
    """Per op and implementation: ``"runs"``, ``"can run"``, or the reason why it cannot, on this machine's best device."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    table = {}
    for op in (op for op in SCHEMAS if op.removesuffix("_backward") == op or op.removesuffix("_backward") not in SCHEMAS):
        chosen, reasons = choose(op, torch.device(device)), {i: why_not(op, i, device) for i in IMPLEMENTATIONS}
        if device == "cuda":
            capability = chip.compute_capability(None)
            reasons = {i: reason or chip.why_not(op, i, capability) for i, reason in reasons.items()}
        table[op] = {i: "runs" if i == chosen else reason or "can run" for i, reason in reasons.items()}
    table["sample_masks"] = {"cpp": MISSING["host"] or "runs", "reference": "runs" if MISSING["host"] else "can run"}
    return table
