"""cross_attention in float32 PyTorch (float64 stays): oracle, fallback, documentation."""

import torch
from einops import rearrange
from torch import Tensor

from avfmae_kernels import softmax_attention
from avfmae_kernels.arguments import at_least_float32


def cross_attention(q: Tensor, kv: Tensor, heads: int) -> Tensor:
    x, (k, v) = _heads(q, heads), rearrange(at_least_float32(kv), "b n (two h d) -> two b h n d", two=2, h=heads)
    return rearrange(softmax_attention.attention(x, k, v), "b h n d -> b n (h d)").to(q.dtype)


def cross_attention_backward(grad: Tensor, q: Tensor, kv: Tensor, heads: int, recompute: bool) -> tuple[Tensor, Tensor, Tensor]:
    x, (k, v) = _heads(q, heads), rearrange(at_least_float32(kv), "b n (two h d) -> two b h n d", two=2, h=heads)
    dq, dk, dv, out = softmax_attention.attention_backward(_heads(grad, heads), x, k, v)
    dq, out = (rearrange(t, "b h n d -> b n (h d)").to(q.dtype) for t in (dq, out))
    dkv = rearrange(torch.stack((dk, dv)), "two b h n d -> b n (two h d)").to(kv.dtype)
    return dq, dkv, out if recompute else q.new_empty(0)


def _heads(x: Tensor, heads: int) -> Tensor:
    return rearrange(at_least_float32(x), "b n (h d) -> b h n d", h=heads)
