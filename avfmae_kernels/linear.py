"""A linear layer of something cheap, which is computed again on the way back instead of kept.

A linear layer keeps its input for its weight's gradient. Where that input is a LayerNorm, a GELU or a short attention, it
follows from what is kept anyway; each of these ops' backward gives it again in the pass that it makes in any case. This is what
halves the memory of a training step. ``use("reference")`` gives the plain composition, and keeps all.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from avfmae_kernels import dispatch
from avfmae_kernels.add_layer_norm import add_layer_norm, check, total_dtype
from avfmae_kernels.add_layer_norm.core import backward_into, forward_into, like, undefined_stay_none
from avfmae_kernels.cross_attention import cross_attention, cross_attention_backward
from avfmae_kernels.gelu_backward import gelu_backward
from avfmae_kernels.region_attention import region_attention, region_attention_backward


def compute_dtype(weight: Tensor) -> torch.dtype:
    """The dtype that a linear layer computes in: autocast's, or its weight's own."""
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


def norm_linear(
    x: Tensor,
    residual: Tensor | None,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    weight: Tensor,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """``F.linear(LayerNorm(x + residual), weight, bias)``: the head of every pre-norm branch.

    Args:
        x: (..., C). residual: (..., C) or None. norm_weight, norm_bias: (C). weight: (O, C). bias: (O) or None.

    Returns:
        The sum (..., C), ``x`` itself where nothing is added, and the linear layer's answer (..., O).
    """
    check(x, residual, norm_weight, norm_bias)
    dtype = compute_dtype(weight)
    implementation = dispatch.choose("add_layer_norm", x.device)
    if implementation == "reference":
        total, normalised = add_layer_norm(x, residual, norm_weight, norm_bias, eps, dtype)
        return total, F.linear(normalised, weight, bias)
    *total, y = _NormLinear.apply(implementation, dtype, eps, x, residual, norm_weight, norm_bias, weight, bias)
    return total[0] if total else x, y


def gelu_linear(h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``F.linear(GELU(h), weight, bias)``, the exact GELU: the tail of a feed-forward. h (..., H) -> (..., O)."""
    if dispatch.plain():
        return F.linear(F.gelu(h), weight, bias)
    return _GeluLinear.apply(compute_dtype(weight), h, weight, bias)


def region_attention_linear(qkv: Tensor, num_heads: int, weight: Tensor, bias: Tensor) -> Tensor:
    """``F.linear(region_attention(qkv, num_heads), weight, bias)``: (N, S, 3C) -> (N, S, O)."""
    if dispatch.plain():
        return F.linear(region_attention(qkv, num_heads), weight, bias)
    return _RegionAttentionLinear.apply(compute_dtype(weight), num_heads, qkv, weight, bias)


def cross_attention_linear(q: Tensor, kv: Tensor, num_heads: int, weight: Tensor, bias: Tensor) -> Tensor:
    """``F.linear(cross_attention(q, kv, num_heads), weight, bias)``: (B, Nq, C), (B, Nk, 2C) -> (B, Nq, O)."""
    if dispatch.plain():
        return F.linear(cross_attention(q, kv, num_heads), weight, bias)
    return _CrossAttentionLinear.apply(compute_dtype(weight), num_heads, q, kv, weight, bias)


def _slopes(grad: Tensor, a: Tensor, weight_dtype: torch.dtype, bias: bool) -> tuple[Tensor, Tensor | None]:
    """Gradients of ``F.linear(a, weight, bias)`` to weight and bias."""
    grad, a = grad.flatten(0, -2), a.flatten(0, -2)
    return (grad.mT @ a).to(weight_dtype), grad.sum(0).to(weight_dtype) if bias else None


class _NormLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, implementation, dtype, eps, x, residual, norm_weight, norm_bias, weight, bias):
        total = None if residual is None else like(x, total_dtype(x, residual))
        normalised = like(x, dtype)
        stats = forward_into(implementation, x, residual, norm_weight, norm_bias, eps, total, normalised)
        cast = weight.to(dtype)
        ctx.implementation, ctx.residual = implementation, None if residual is None else residual.dtype
        ctx.weight, ctx.bias = weight.dtype, bias is not None
        ctx.save_for_backward(x if total is None else total, stats, norm_weight, norm_bias, cast)
        undefined_stay_none(ctx)
        y = F.linear(normalised, cast, None if bias is None else bias.to(dtype))
        return (y,) if total is None else (total, y)

    @staticmethod
    def backward(ctx, *grads):
        grad_total, grad = (None, *grads)[-2:]
        total, stats, norm_weight, norm_bias, weight = ctx.saved_tensors
        slope, normalised = like(total, total.dtype), like(total, weight.dtype)
        other = like(total, ctx.residual) if ctx.residual not in (None, total.dtype) else None
        if grad is None:  # the linear layer's answer was not used
            grad = total.new_zeros(*total.shape[:-1], len(weight), dtype=weight.dtype)
        d_norm = backward_into(
            ctx.implementation,
            grad_total,
            grad @ weight,
            total,
            stats,
            norm_weight,
            norm_bias,
            slope,
            other,
            normalised,
        )
        residual = None if ctx.residual is None else slope if other is None else other
        return (
            None,
            None,
            None,
            slope,
            residual,
            *d_norm.to(norm_weight.dtype),
            *_slopes(grad, normalised, ctx.weight, ctx.bias),
        )


class _GeluLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, dtype, h, weight, bias):
        cast = weight.to(dtype)
        ctx.weight = weight.dtype
        ctx.save_for_backward(h, cast)
        return F.linear(F.gelu(h).to(dtype), cast, bias.to(dtype))

    @staticmethod
    def backward(ctx, grad):
        h, weight = ctx.saved_tensors
        d_h, out = gelu_backward((grad @ weight).to(h.dtype), h)
        return None, d_h, *_slopes(grad, out.to(grad.dtype), ctx.weight, True)


class _RegionAttentionLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, dtype, heads, qkv, weight, bias):
        cast = weight.to(dtype)
        ctx.heads, ctx.weight = heads, weight.dtype
        ctx.save_for_backward(qkv, cast)
        return F.linear(region_attention(qkv, heads).to(dtype), cast, bias.to(dtype))

    @staticmethod
    def backward(ctx, grad):
        qkv, weight = ctx.saved_tensors
        d_qkv, out = region_attention_backward((grad @ weight).to(qkv.dtype), qkv, ctx.heads, again=True)
        return None, None, d_qkv, *_slopes(grad, out.to(grad.dtype), ctx.weight, True)


class _CrossAttentionLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, dtype, heads, q, kv, weight, bias):
        cast = weight.to(dtype)
        ctx.heads, ctx.weight = heads, weight.dtype
        ctx.save_for_backward(q, kv, cast)
        return F.linear(cross_attention(q, kv, heads).to(dtype), cast, bias.to(dtype))

    @staticmethod
    def backward(ctx, grad):
        q, kv, weight = ctx.saved_tensors
        d_q, d_kv, out = cross_attention_backward((grad @ weight).to(q.dtype), q, kv, ctx.heads, again=True)
        return None, None, d_q, d_kv, *_slopes(grad, out.to(grad.dtype), ctx.weight, True)
