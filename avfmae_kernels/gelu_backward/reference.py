"""gelu_backward in plain PyTorch, which is float32 inside: oracle, fallback, documentation."""

import torch
import torch.nn.functional as F
from torch import Tensor


def gelu_backward(grad: Tensor, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    grad_x = torch.ops.aten.gelu_backward(grad, x)
    return grad_x, F.gelu(x), grad_x.view(-1, x.shape[-1]).sum(0, dtype=torch.float32).to(dtype)
