"""The parts every block is made of: attention, feed-forward, stochastic depth.

A pre-norm residual block is a chain x ← x + f(LN(x)). Here each part takes (x, branch) and gives (x + branch, f(LN(x + branch))):
it adds the branch of the part before it, in the pass that normalises anyway, and leaves its own unadded for the next.

Shapes: B batch, N queries, M keys, C width, H heads, D = C/H. Queries and values carry a learned bias, keys none:
a bias on the keys adds the same number to all logits of a query, and softmax does not see it.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

import avfmae_kernels as K
from avfmae.extras import need
from avfmae.models.biases import PackedBias
from avfmae_kernels.device import kind

EPS = 1e-6  # every LayerNorm of the family
LONGEST_ON_A_GPU = 64  # sequences of the shorter side that the kernels attend to faster than torch


def layer_norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=EPS)


class Linear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return K.linear(x, self.weight, self.bias)


def drop_path(x: Tensor, rate: float, training: bool) -> Tensor:
    """Stochastic depth (Huang et al., 2016): drops a whole residual branch of a sample, and scales the kept ones."""
    if rate == 0 or not training:
        return x
    keep = torch.rand(x.shape[0], *[1] * (x.ndim - 1), device=x.device) >= rate
    return x * keep / (1 - rate)


class DropsBranches(nn.Module):
    """A block with stochastic depth, at the rate ``drop``."""

    def __init__(self, drop: float):
        super().__init__()
        self.drop = drop

    def dropped(self, branch: Tensor) -> Tensor:
        return drop_path(branch, self.drop, self.training)


def multi_head_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, backend: str = "sdpa") -> Tensor:
    """softmax(q kᵀ / √D) v per head: (B, N, C), (B, M, C), (B, M, C) -> (B, N, C)."""
    if backend == "flash":
        q, k, v = (rearrange(t, "b n (h d) -> b n h d", h=heads) for t in (q, k, v))
        return rearrange(flash_attention()(q, k, v), "b n h d -> b n (h d)")
    q, k, v = (rearrange(t, "b n (h d) -> b h n d", h=heads) for t in (q, k, v))
    return rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)")


def flash_attention():
    return need("flash_attn", "flash", "attention='flash'").flash_attn_func


def pre_norm(x: Tensor, branch: Tensor | None, norm: nn.LayerNorm, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """x + branch, and a linear layer of its norm."""
    return K.norm_linear(x, branch, norm.weight, norm.bias, norm.eps, weight, bias)


def add_norm(x: Tensor, branch: Tensor | None, norm: nn.LayerNorm | None) -> tuple[Tensor, Tensor]:
    """x + branch, and its norm in the dtype of x + branch; without a norm the sum itself."""
    if norm is None:
        x = x if branch is None else x + branch
        return x, x
    return K.add_layer_norm(x, branch, norm.weight, norm.bias, norm.eps)


def short(device: torch.device, length: int, head_size: int) -> bool:
    """Whether attention of this length is the kernels'; on a GPU longer ones are torch's or flash-attn's.

    On an H200 480 queries to 80 keys take 350 µs in ours and 105 µs in torch's (batch 256, 6 heads of 64).
    """
    return kind(device) == "cpu" or (length <= LONGEST_ON_A_GPU and K.fits_a_tile(length, head_size))


def attend(q: Tensor, kv: Tensor, heads: int, proj: nn.Linear, backend: str) -> Tensor:
    """Queries (B, N, C), and keys and values (B, M, 2C) -> the branch (B, N, C)."""
    if not short(q.device, min(q.shape[1], kv.shape[1]), q.shape[-1] // heads):
        k, v = kv.chunk(2, dim=-1)
        return proj(multi_head_attention(q, k, v, heads, backend))
    return K.cross_attention_linear(q, kv, heads, proj.weight, proj.bias)


class SelfAttention(PackedBias):
    """Attention of a sequence to itself, with one packed projection."""

    packed = "q_bias", None, "v_bias"

    def __init__(self, width: int, heads: int, backend: str = "sdpa"):
        super().__init__()
        self.heads, self.backend = heads, backend
        self.qkv = Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = Linear(width, width)

    def forward(self, x: Tensor, branch: Tensor | None, norm: nn.LayerNorm, last: int | None = None) -> tuple[Tensor, Tensor]:
        """x, branch (..., N, C) -> the same, or with ``last`` (..., last, C): of the last tokens only, all as keys."""
        if last is not None:
            return self.of_last(x, branch, norm, last)
        x, qkv = pre_norm(x, branch, norm, self.qkv.weight, self.bias)
        return x, self.attend(qkv)

    def attend(self, qkv: Tensor) -> Tensor:
        """Queries, keys and values (..., N, 3C) -> the branch (..., N, C)."""
        sequences = qkv.flatten(0, -3)
        if short(qkv.device, qkv.shape[-2], qkv.shape[-1] // 3 // self.heads):
            out = K.region_attention_linear(sequences, self.heads, self.proj.weight, self.proj.bias)
        else:
            q, k, v = sequences.chunk(3, dim=-1)
            out = self.proj(multi_head_attention(q, k, v, self.heads, self.backend))
        return out.view(*qkv.shape[:-1], out.shape[-1])

    def of_last(self, x: Tensor, branch: Tensor | None, norm: nn.LayerNorm, last: int) -> tuple[Tensor, Tensor]:
        width = x.shape[-1]
        x, normalised = add_norm(x, branch, norm)
        q = K.linear(normalised[:, -last:], self.qkv.weight[:width], self.q_bias)
        kv = K.linear(normalised, self.qkv.weight[width:], self.bias[width:])
        return x[:, -last:], attend(q, kv, self.heads, self.proj, self.backend)


class CrossAttention(PackedBias):
    """Attention of a sequence to another one."""

    packed = None, "v_bias"  # of keys and values

    def __init__(self, width: int, heads: int, backend: str = "sdpa"):
        super().__init__()
        self.heads, self.backend = heads, backend
        self.q = Linear(width, width, bias=False)
        self.kv = Linear(width, 2 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = Linear(width, width)

    def forward(
        self, x: Tensor, branch: Tensor | None, norm: nn.LayerNorm, context: Tensor, context_norm: nn.LayerNorm
    ) -> tuple[Tensor, Tensor]:
        """x, branch (B, N, C), context (B, M, C) -> x, branch."""
        x, q = self.queries(x, branch, norm)
        _, kv = self.keys_and_values(context, None, context_norm)
        return x, self.attend(q, kv)

    def queries(self, x: Tensor, branch: Tensor | None, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
        return pre_norm(x, branch, norm, self.q.weight, self.q_bias)

    def keys_and_values(self, context: Tensor, branch: Tensor | None, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
        return pre_norm(context, branch, norm, self.kv.weight, self.bias)

    def attend(self, q: Tensor, kv: Tensor) -> Tensor:
        """Queries (B, N, C), and keys and values (B, M, 2C) -> the branch (B, N, C)."""
        return attend(q, kv, self.heads, self.proj, self.backend)

    def one_key(self, context: Tensor) -> Tensor:
        """The answer to any query when the context (B, 1, C) has one token: softmax over one key is 1, whatever q is."""
        v = K.linear(context, self.kv.weight[context.shape[-1] :], self.v_bias)
        return self.proj(v)


class MLP(nn.Module):
    """Linear, exact GELU, linear; ratio 4, unless told otherwise."""

    def __init__(self, width: int, hidden: int | None = None, out: int | None = None):
        super().__init__()
        self.fc1 = Linear(width, hidden or 4 * width)
        self.fc2 = Linear(hidden or 4 * width, out or width)

    def forward(self, x: Tensor, branch: Tensor | None, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
        """x, branch (..., C) -> x, branch."""
        dtype = K.compute_dtype(self.fc1.bias)
        x, normalised = K.add_layer_norm(x, branch, norm.weight, norm.bias, norm.eps, dtype)
        return x, self.of_normalised(normalised)

    def of_normalised(self, x: Tensor) -> Tensor:
        return K.mlp(x, self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias)
