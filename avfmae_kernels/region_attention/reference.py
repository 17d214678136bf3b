"""region_attention in plain float32 PyTorch (float64 stays): oracle, fallback, documentation."""

import torch
from einops import rearrange
from torch import Tensor

from avfmae_kernels.arguments import at_least_float32


def region_attention(qkv: Tensor, heads: int) -> Tensor:
    q, k, v = rearrange(at_least_float32(qkv), "n s (three h d) -> three n h s d", three=3, h=heads)
    probabilities = (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1)
    return rearrange(probabilities @ v, "n h s d -> n s (h d)").to(qkv.dtype)


def region_attention_backward(grad: Tensor, qkv: Tensor, heads: int, again: bool) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        qkv = qkv.detach().requires_grad_()
        out = region_attention(qkv, heads)
    (slope,) = torch.autograd.grad(out, qkv, grad)
    return slope, out.detach() if again else out.new_empty(0)
