"""region_attention in float32 PyTorch (float64 stays): oracle, fallback, documentation."""

import torch
from einops import rearrange
from torch import Tensor

from avfmae_kernels import softmax_attention
from avfmae_kernels.arguments import at_least_float32


def region_attention(qkv: Tensor, heads: int) -> Tensor:
    q, k, v = rearrange(at_least_float32(qkv), "n s (three h d) -> three n h s d", three=3, h=heads)
    return rearrange(softmax_attention.attention(q, k, v), "n h s d -> n s (h d)").to(qkv.dtype)


def region_attention_backward(grad: Tensor, qkv: Tensor, heads: int, recompute: bool) -> tuple[Tensor, Tensor]:
    q, k, v = rearrange(at_least_float32(qkv), "n s (three h d) -> three n h s d", three=3, h=heads)
    grad = rearrange(at_least_float32(grad), "n s (h d) -> n h s d", h=heads)
    *dqkv, out = softmax_attention.attention_backward(grad, q, k, v)
    dqkv = rearrange(torch.stack(dqkv), "three n h s d -> n s (three h d)").to(qkv.dtype)
    return dqkv, rearrange(out, "n h s d -> n s (h d)").to(qkv.dtype) if recompute else qkv.new_empty(0)
