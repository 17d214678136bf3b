"""Sums of a matrix's columns: the gradient of a linear layer's bias, and the last step of a norm's gradients."""

import torch
from torch import Tensor

from avfmae_kernels.arguments import FLOATS, check_floats
from avfmae_kernels.column_sum import reference
from avfmae_kernels.dispatch import call, register

register(
    "column_sum", "(Tensor x, ScalarType dtype) -> Tensor", reference.column_sum,
    triton="avfmae_kernels.column_sum.triton", strict=False,
)  # fmt: skip


def column_sum(x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    r"""Sums over rows, :math:`out_c = \sum_r x_{r,c}`, added up in float32 and in the same order every time.

    Floor: bytes. It reads the matrix once. PyTorch's reduction of a tall bfloat16 matrix reaches a third of an H200's bandwidth.

    Args:
        x: (rows, C) float32, bfloat16 or float16. Rows may lie anywhere.
        dtype: of the sums: float32, bfloat16 or float16.

    Returns:
        (C), in ``dtype``.
    """
    if x.ndim != 2:
        raise ValueError(f"x: got {tuple(x.shape)}, expected (rows, C)")
    if x.stride(1) != 1:  # gradients of sums come expanded
        x = x.contiguous()
    check_floats(x=x)
    if dtype not in FLOATS:
        raise ValueError(f"dtype: got {dtype}, expected torch.float32, torch.bfloat16 or torch.float16")
    return call("column_sum", x.device, x, dtype)
