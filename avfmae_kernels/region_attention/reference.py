"""region_attention in float32 PyTorch (float64 stays): attention of a sequence to itself."""

import torch
from torch import Tensor

from avfmae_kernels.cross_attention import reference


def region_attention(qkv: Tensor, heads: int) -> Tensor:
    C = qkv.shape[2] // 3
    return reference.cross_attention(qkv[..., :C], qkv[..., C:], heads)


def region_attention_backward(grad: Tensor, qkv: Tensor, heads: int, recompute: bool) -> tuple[Tensor, Tensor]:
    C = qkv.shape[2] // 3
    dq, dkv, out = reference.cross_attention_backward(grad, qkv[..., :C], qkv[..., C:], heads, recompute)
    return torch.cat([dq, dkv], dim=-1), out
