"""The correctness bar of a differentiable op: against float64, answer and all gradients, with uninitialised memory poisoned."""

from collections.abc import Callable
from contextlib import contextmanager

import torch
from torch import Tensor

import avfmae_kernels as K

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}


@contextmanager
def poisoned():
    """Fills what torch.empty gives with NaN, so that a number that nobody wrote shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def error(got: Tensor, want: Tensor) -> float:
    """Relative L2 distance; NaN where ``got`` holds one."""
    return float((got.detach().double().cpu() - want.detach()).norm() / want.detach().norm())


def kept_numbers(forward: Callable) -> int:
    """Numbers that autograd keeps for the way back, beside the parameters."""
    kept = {}

    def pack(t):
        if not isinstance(t, torch.nn.Parameter):
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes() // t.element_size()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = forward()
    del out
    return sum(kept.values())


def run(op: Callable, inputs: list[Tensor], upstream: list[Tensor]) -> list[Tensor]:
    """The op's answers, then its gradients to all inputs, for the given gradients to the answers."""
    leaves = [x.detach().clone(memory_format=torch.preserve_format).requires_grad_() for x in inputs]
    out = op(*leaves)
    out = list(out) if isinstance(out, tuple) else [out]
    return out + list(torch.autograd.grad(out, leaves, [g.to(o) for g, o in zip(upstream, out, strict=True)]))


def check(implementation: str, op: Callable, oracle: Callable, inputs: list[Tensor], dtype: torch.dtype, device: str = "cpu"):
    """Asserts that ``op`` under ``implementation`` meets the bar.

    Args:
        op: of the public interface; gets ``inputs`` in ``dtype`` on ``device``.
        oracle: the same maths in plain PyTorch; gets them rounded to ``dtype``, in float64 on the CPU.
        inputs: float64 tensors.
    """
    given = [x.to(dtype) for x in inputs]
    exact = [x.double() for x in given]
    answers = oracle(*exact)
    answers = list(answers) if isinstance(answers, tuple) else [answers]
    g = torch.Generator().manual_seed(1)
    upstream = [torch.randn(a.shape, generator=g, dtype=torch.float64).to(dtype).double() for a in answers]
    want = run(oracle, exact, upstream)
    moved = [x.to(device) for x in given]
    with K.use(implementation), poisoned():
        got = run(op, moved, upstream)
    with K.use("reference"):
        plain = run(op, moved, upstream)
    times = 2 if (implementation, device) == ("triton", "cuda") else 1.5  # the tensor cores' factors are rounded once more
    for i, (a, p, w) in enumerate(zip(got, plain, want, strict=True)):
        assert w.norm() > 0 and a.shape == w.shape, f"number {i} is vacuous, or {tuple(a.shape)}"
        e, r = error(a, w), error(p, w)
        assert e <= TOLERANCE[dtype] and e <= max(times * r, 1e-6), f"number {i}: error {e:.2e}, the reference's {r:.2e}"
