"""gelu_backward in plain PyTorch, which is float32 inside: oracle, fallback, documentation."""

import torch
import torch.nn.functional as F
from torch import Tensor


def gelu_backward(grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ops.aten.gelu_backward(grad, x), F.gelu(x)
