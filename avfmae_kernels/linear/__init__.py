"""Linear layers whose input is cheap: it is recomputed in the backward pass instead of kept.

A linear layer keeps its input for its weight's gradient. Where that input is a LayerNorm, a GELU or a short attention, it follows
from what is kept anyway: the backward of these ops recomputes it in the pass that it makes in any case. This halves the memory of
a training step. Long attention is kept, and so is the norm before a feed-forward. ``use("reference")`` gives the composition in
PyTorch, and keeps all.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from avfmae_kernels import dispatch, matmul
from avfmae_kernels.add_layer_norm import add_layer_norm, check, core
from avfmae_kernels.add_layer_norm.core import undefined_stay_none
from avfmae_kernels.arguments import FLOATS, TILE
from avfmae_kernels.column_sum import column_sum
from avfmae_kernels.cross_attention import cross_attention, cross_attention_backward
from avfmae_kernels.device import kind
from avfmae_kernels.gelu_backward import gelu_backward
from avfmae_kernels.region_attention import region_attention, region_attention_backward


def compute_dtype(weight: Tensor) -> torch.dtype:
    """The dtype that a linear layer computes in: autocast's, or its weight's own."""
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


def norm_linear(
    x: Tensor, residual: Tensor | None, norm_weight: Tensor, norm_bias: Tensor, eps: float, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """``F.linear(LayerNorm(x + residual), weight, bias)``: the head of every pre-norm branch.

    Args:
        x: (..., C). residual: (..., C) or None. norm_weight, norm_bias: (C). weight: (O, C). bias: (O) or None.

    Returns:
        The sum (..., C), ``x`` where nothing is added, and the linear layer's answer (..., O). What goes on with the sum rather
        than with ``x`` has its gradient added in the norm's own pass.
    """
    check(x, residual, norm_weight, norm_bias)
    implementation = dispatch.choose("add_layer_norm", x.device)
    if implementation == "reference":
        total, normalised = add_layer_norm(x, residual, norm_weight, norm_bias, eps, compute_dtype(weight))
        return total, F.linear(normalised, weight, bias)
    return _NormLinear.apply(implementation, eps, x, residual, norm_weight, norm_bias, weight, bias)


def mlp(x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
    """The feed-forward of a transformer, ``F.linear(GELU(F.linear(x, weight1, bias1)), weight2, bias2)``, with the exact GELU.

    Args:
        x: (..., C). weight1: (H, C). bias1: (H). weight2: (O, H). bias2: (O).

    Returns:
        (..., O).
    """
    if dispatch.uses_reference():
        return F.linear(F.gelu(F.linear(x, weight1, bias1)), weight2, bias2)
    return _MLP.apply(x, weight1, bias1, weight2, bias2)


def region_attention_linear(qkv: Tensor, num_heads: int, weight: Tensor, bias: Tensor) -> Tensor:
    """``F.linear(region_attention(qkv, num_heads), weight, bias)``: (N, S, 3C) -> (N, S, O)."""
    if dispatch.uses_reference() or qkv.shape[1] > TILE:
        return linear(region_attention(qkv, num_heads), weight, bias)
    return _LinearOf.apply(region_attention, region_attention_backward, (num_heads,), weight, bias, qkv)


def cross_attention_linear(q: Tensor, kv: Tensor, num_heads: int, weight: Tensor, bias: Tensor) -> Tensor:
    """``F.linear(cross_attention(q, kv, num_heads), weight, bias)``: (B, Nq, C), (B, Nk, 2C) -> (B, Nq, O)."""
    if dispatch.uses_reference() or min(q.shape[1], kv.shape[1]) > TILE:
        return linear(cross_attention(q, kv, num_heads), weight, bias)
    return _LinearOf.apply(cross_attention, cross_attention_backward, (num_heads,), weight, bias, q, kv)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear(x, weight, bias)`` of something that must be kept: (..., I) -> (..., O)."""
    dtype = compute_dtype(weight)
    ours = matmul.has_faster(x, dtype) or (kind(x.device) == "cuda" and dtype in FLOATS)
    if dispatch.uses_reference() or not ours:
        return F.linear(x, weight, bias)
    return _Linear.apply(dtype, x, weight, bias)


WeightGradHook = Callable[[Tensor, Tensor], Tensor | None]
_weight_grad_hooks: Mapping[int, WeightGradHook] = {}


@contextmanager
def intercept_weight_grads(hooks: Mapping[int, WeightGradHook]) -> Iterator[None]:
    """Calls hooks before weights' gradients are computed, in the backward passes inside.

    Args:
        hooks: by a weight's ``id``. A hook gets the factors grad (rows, O) and a (rows, I) of the weight's gradient gradᵀ·a.
            If it returns the sums of grad's columns (O), float32, the weight gets no gradient. If it returns None, the gradient
            is computed.
    """
    global _weight_grad_hooks
    before, _weight_grad_hooks = _weight_grad_hooks, hooks
    try:
        yield
    finally:
        _weight_grad_hooks = before


def _weight_grads(
    grad: Tensor, a: Tensor, weight: Tensor, dtype: torch.dtype, bias: bool, sums: Tensor | None = None
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of ``F.linear(a, weight, bias)`` to weight and bias, in ``dtype``; ``sums``: the bias's, if known."""
    grad, a = matmul.rows(grad), matmul.rows(a)
    if (hook := _weight_grad_hooks.get(id(weight))) and (column_sums := hook(grad, a)) is not None:
        return None, column_sums.to(dtype) if bias else None
    to_bias = None if not bias else column_sum(grad, dtype) if sums is None else sums
    return matmul.to_weight(grad, a, dtype), to_bias


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, dtype, x, weight, bias):
        ctx.bias, ctx.x = bias is not None, x.dtype
        x = x.to(dtype)
        ctx.save_for_backward(x, weight)
        return matmul.linear(x, matmul.operand(weight, dtype), bias)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        to_x = matmul.to_input(grad, matmul.operand(weight, grad.dtype)).to(ctx.x) if ctx.needs_input_grad[1] else None
        return None, to_x, *_weight_grads(grad, x, weight, weight.dtype, ctx.bias)


class _MLP(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight1, bias1, weight2, bias2):
        dtype = compute_dtype(weight1)
        ctx.x, ctx.weights = x.dtype, weight1.dtype
        x, operand1, operand2 = x.to(dtype), matmul.operand(weight1, dtype), matmul.operand(weight2, dtype)
        hidden = matmul.linear(x, operand1, bias1)
        ctx.save_for_backward(x, hidden, operand1, operand2)
        return matmul.linear(F.gelu(hidden), operand2, bias2)

    @staticmethod
    def backward(ctx, grad):
        x, hidden, weight1, weight2 = ctx.saved_tensors
        grad_hidden, activated, sums = gelu_backward(matmul.to_input(grad, weight2), hidden, ctx.weights)
        second = _weight_grads(grad, activated, weight2, ctx.weights, True)
        to_x = matmul.to_input(grad_hidden, weight1).to(ctx.x) if ctx.needs_input_grad[0] else None
        return to_x, *_weight_grads(grad_hidden, x, weight1, ctx.weights, True, sums), *second


class _NormLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, implementation, eps, x, residual, norm_weight, norm_bias, weight, bias):
        dtype = compute_dtype(weight)
        total, normalised, stats = core.forward(implementation, x, residual, norm_weight, norm_bias, eps, dtype)
        operand = matmul.operand(weight, dtype)
        ctx.implementation, ctx.residual = implementation, None if residual is None else residual.dtype
        ctx.dtype, ctx.weight, ctx.bias = dtype, weight.dtype, bias is not None
        ctx.save_for_backward(total, stats, norm_weight, norm_bias, operand)
        undefined_stay_none(ctx)
        return total, matmul.linear(normalised, operand, bias)

    @staticmethod
    def backward(ctx, grad_total, grad):
        *saved, weight = ctx.saved_tensors
        total = saved[0]
        if grad is None:  # the linear layer's answer was not used
            grad = total.new_zeros(*total.shape[:-1], len(weight), dtype=ctx.dtype)
        normalised = core.like(total, ctx.dtype)
        grad_inputs = core.backward(
            ctx.implementation, grad_total, matmul.to_input(grad, weight), *saved, ctx.residual, normalised
        )
        return None, None, *grad_inputs, *_weight_grads(grad, normalised, weight, ctx.weight, ctx.bias)


class _LinearOf(torch.autograd.Function):
    """``F.linear(op(*inputs, *constants), weight, bias)``, where ``backward`` gives the inputs' gradients and op's output."""

    @staticmethod
    def forward(ctx, op, backward, constants, weight, bias, *inputs):
        dtype = compute_dtype(weight)
        operand = matmul.operand(weight, dtype)
        ctx.backward_of_op, ctx.constants, ctx.weight = backward, constants, weight.dtype
        ctx.save_for_backward(operand, *inputs)
        return matmul.linear(op(*inputs, *constants).to(dtype), operand, bias)

    @staticmethod
    def backward(ctx, grad):
        weight, *inputs = ctx.saved_tensors
        *grad_inputs, out = ctx.backward_of_op(matmul.to_input(grad, weight).to(inputs[0].dtype), *inputs, *ctx.constants)
        return None, None, None, *_weight_grads(grad, out.to(grad.dtype), weight, ctx.weight, True), *grad_inputs
