"""column_sum in PyTorch."""

import torch
from torch import Tensor


def column_sum(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.sum(0, dtype=torch.float32).to(dtype)
