"""Whose way a tensor goes: the CPU's or a GPU's. While a step is traced, CPU tensors without memory stand in for a GPU's."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_pretended = 0  # the compute capability of the GPU that stands in for the CPU


@contextmanager
def as_on_gpu(capability: int) -> Iterator[None]:
    """Lets CPU tensors go the way that tensors of a GPU go: for tracing, with fake tensors, what a GPU would run.

    Args:
        capability: the compute capability of that GPU, 90 for 9.0. Triton's kernels are taken, whether or not Triton is there.
    """
    global _pretended
    before, _pretended = _pretended, capability
    try:
        yield
    finally:
        _pretended = before


def kind(device: torch.device) -> str:
    """``"cpu"`` or ``"cuda"``: whose way tensors of this device go."""
    return "cuda" if _pretended else device.type


def pretended() -> int:
    """The compute capability of the GPU that CPU tensors stand in for; 0: they stand for themselves."""
    return _pretended
