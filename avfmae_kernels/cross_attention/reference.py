"""cross_attention in plain float32 PyTorch (float64 stays): oracle, fallback, documentation."""

import torch
from einops import rearrange
from torch import Tensor

from avfmae_kernels.arguments import at_least_float32


def cross_attention(q: Tensor, kv: Tensor, heads: int) -> Tensor:
    x = rearrange(at_least_float32(q), "b n (h d) -> b h n d", h=heads)
    k, v = rearrange(at_least_float32(kv), "b n (two h d) -> two b h n d", two=2, h=heads)
    probabilities = (x @ k.mT * x.shape[-1] ** -0.5).softmax(dim=-1)
    return rearrange(probabilities @ v, "b h n d -> b n (h d)").to(q.dtype)


def cross_attention_backward(
    grad: Tensor, q: Tensor, kv: Tensor, heads: int, again: bool
) -> tuple[Tensor, Tensor, Tensor]:
    with torch.enable_grad():
        q, kv = q.detach().requires_grad_(), kv.detach().requires_grad_()
        out = cross_attention(q, kv, heads)
    dq, dkv = torch.autograd.grad(out, (q, kv), grad)
    return dq, dkv, out.detach() if again else out.new_empty(0)
