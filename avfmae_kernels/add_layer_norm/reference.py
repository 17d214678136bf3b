"""add_layer_norm in float32 PyTorch (float64 stays): oracle, fallback, documentation."""

import torch
import torch.nn.functional as F
from torch import Tensor

from avfmae_kernels.arguments import at_least_float32


def add_layer_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    total = x if residual is None else x + residual
    y, weight, bias = (at_least_float32(t) for t in (total, weight, bias))
    normalised = F.layer_norm(y, weight.shape, weight.to(y.dtype), bias.to(y.dtype), eps)
    return total, normalised.to(dtype or total.dtype)
