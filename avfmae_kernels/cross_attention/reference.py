"""cross_attention in float32 PyTorch (float64 stays): oracle, fallback, documentation."""

import torch
from einops import rearrange
from torch import Tensor

from avfmae_kernels.arguments import at_least_float32


def cross_attention(q: Tensor, kv: Tensor, heads: int) -> Tensor:
    x, k, v = _heads(q, kv, heads)
    return _rows(_probabilities(x, k) @ v, q.dtype)


def cross_attention_backward(grad: Tensor, q: Tensor, kv: Tensor, heads: int, recompute: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to q and kv, and the recomputed output.

    With p = softmax(q kᵀ/√D) and g the gradient: dv = pᵀ g; dp = g vᵀ; ds = p ⊙ (dp − Σ p ⊙ dp)/√D; dq = ds k; dk = dsᵀ q.
    Written out rather than left to autograd, which a compiled backward pass cannot call.
    """
    (g, _, _), (x, k, v) = _heads(grad, kv, heads), _heads(q, kv, heads)
    p, dp = _probabilities(x, k), g @ v.mT
    ds = p * (dp - (p * dp).sum(-1, keepdim=True)) * x.shape[-1] ** -0.5
    dkv = torch.cat([_rows(ds.mT @ x, kv.dtype), _rows(p.mT @ g, kv.dtype)], dim=-1)
    return _rows(ds @ k, q.dtype), dkv, _rows(p @ v, q.dtype) if recompute else q.new_empty(0)


def _heads(q: Tensor, kv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of each head, (B, heads, N, D)."""
    parts = (q, *kv.chunk(2, dim=-1))
    x, k, v = (rearrange(at_least_float32(t), "b n (h d) -> b h n d", h=heads) for t in parts)
    return x, k, v


def _rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    return rearrange(x, "b h n d -> b n (h d)").to(dtype)


def _probabilities(q: Tensor, k: Tensor) -> Tensor:
    return (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1)
