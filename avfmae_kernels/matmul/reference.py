"""matmul_bf16 in PyTorch: oracle, fallback, documentation."""

import torch
from torch import Tensor


def matmul_bf16(a: Tensor, b: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    product = a.to(torch.bfloat16).float() @ b.to(torch.bfloat16).float()
    return (product if bias is None else product + bias).to(dtype)
