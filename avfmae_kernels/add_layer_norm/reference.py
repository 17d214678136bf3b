"""add_layer_norm in plain PyTorch, whose layer_norm is float32 inside: oracle, fallback, documentation."""

import torch
import torch.nn.functional as F
from torch import Tensor


def add_layer_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    total = x if residual is None else x + residual
    normalised = F.layer_norm(total, weight.shape, weight.to(total.dtype), bias.to(total.dtype), eps)
    return total, normalised.to(dtype or total.dtype)
