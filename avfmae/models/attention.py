"""The parts every block is made of: attention, feed-forward, stochastic depth.

Shapes: B batch, N queries, M keys, C width, H heads, D = C/H. Queries and values carry a learned bias, keys none:
a bias on the keys adds the same number to all logits of a query, and softmax does not see it.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

EPS = 1e-6  # every LayerNorm of the family


def layer_norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=EPS)


def drop_path(x: Tensor, rate: float, training: bool) -> Tensor:
    """Stochastic depth (Huang et al., 2016): drops a whole residual branch of a sample, and scales the kept ones."""
    if rate == 0 or not training:
        return x
    keep = torch.rand(x.shape[0], *[1] * (x.ndim - 1), device=x.device) >= rate
    return x * keep / (1 - rate)


def multi_head_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, backend: str = "sdpa") -> Tensor:
    """softmax(q kᵀ / √D) v per head: (B, N, C), (B, M, C), (B, M, C) -> (B, N, C)."""
    if backend == "flash":
        q, k, v = (rearrange(t, "b n (h d) -> b n h d", h=heads) for t in (q, k, v))
        return rearrange(_flash_attention()(q, k, v), "b n h d -> b n (h d)")
    q, k, v = (rearrange(t, "b n (h d) -> b h n d", h=heads) for t in (q, k, v))
    return rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)")


def _flash_attention():
    try:
        from flash_attn import flash_attn_func
    except ImportError as error:
        raise RuntimeError(
            f"attention='flash' was asked for, but flash-attn does not import ({error}); use 'sdpa'"
        ) from error
    return flash_attn_func


class SelfAttention(nn.Module):
    """Attention of a sequence to itself, with one packed projection."""

    def __init__(self, width: int, heads: int, backend: str = "sdpa"):
        super().__init__()
        self.heads, self.backend = heads, backend
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, last: int | None = None) -> Tensor:
        """x (B, N, C) -> (B, N, C), or (B, last, C): the answer for the last tokens only, all of x as keys."""
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        if last is None:
            q, k, v = F.linear(x, self.qkv.weight, bias).chunk(3, dim=-1)
        else:
            width = x.shape[-1]
            q = F.linear(x[:, -last:], self.qkv.weight[:width], self.q_bias)
            k, v = F.linear(x, self.qkv.weight[width:], bias[width:]).chunk(2, dim=-1)
        return self.proj(multi_head_attention(q, k, v, self.heads, self.backend))


class CrossAttention(nn.Module):
    """Attention of a sequence to another one."""

    def __init__(self, width: int, heads: int, backend: str = "sdpa"):
        super().__init__()
        self.heads, self.backend = heads, backend
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(width, 2 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x (B, N, C), context (B, M, C) -> (B, N, C)."""
        q = F.linear(x, self.q.weight, self.q_bias)
        k, v = F.linear(context, self.kv.weight, torch.cat([torch.zeros_like(self.v_bias), self.v_bias])).chunk(
            2, dim=-1
        )
        return self.proj(multi_head_attention(q, k, v, self.heads, self.backend))

    def one_key(self, context: Tensor) -> Tensor:
        """The answer to any query when the context (B, 1, C) has one token: softmax over one key is 1, whatever q is."""
        v = F.linear(context, self.kv.weight[context.shape[-1] :], self.v_bias)
        return self.proj(v)


class MLP(nn.Module):
    """Linear, exact GELU, linear; ratio 4."""

    def __init__(self, width: int):
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))
