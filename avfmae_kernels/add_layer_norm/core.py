"""add_layer_norm without autograd: tensors in, results written where they are wanted, which may be slots of a buffer."""

import torch
from torch import Tensor

from avfmae_kernels.column_sum import column_sum
from avfmae_kernels.dispatch import op_of

PARTS = 528  # programs of a GPU that sum the gradients to weight and bias, at most: four on each processor of an H200


def like(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A dense tensor of ``x``'s shape, whatever its strides, not filled."""
    return torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)


def undefined_stay_none(ctx) -> None:
    """Gradients that nobody sends come as None rather than as zeros (torch.compile traces zeros, and removes them)."""
    if not torch.compiler.is_compiling():
        ctx.set_materialize_grads(False)


def _rows(x: Tensor | None) -> Tensor | None:
    """The same rows as (outer, inner, C)."""
    if x is None or (x.ndim == 3 and x.stride(2) == 1):
        return x
    if x.stride(-1) != 1 and x.shape[-1] > 1:  # gradients of sums come expanded
        x = x.contiguous()
    return x if x.ndim == 3 else x[None] if x.ndim == 2 else x.flatten(0, -3)


def forward_into(
    implementation: str, x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float,
    total: Tensor | None, normalised: Tensor,
) -> Tensor:  # fmt: skip
    """Writes the sum (where asked for) and the norm; returns each row's mean and inverse deviation (rows, 2)."""
    stats = x.new_empty(x.numel() // x.shape[-1], 2, dtype=torch.float32)
    op_of("add_layer_norm", implementation)(_rows(x), _rows(residual), weight, bias, eps, _rows(total), _rows(normalised), stats)
    return stats


def forward(
    implementation: str, x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """The sum (``x`` itself where nothing is added), its norm in ``dtype``, and its statistics."""
    total = None if residual is None else like(x, torch.promote_types(x.dtype, residual.dtype))
    normalised = like(x, dtype)
    stats = forward_into(implementation, x, residual, weight, bias, eps, total, normalised)
    return x if total is None else total, normalised, stats


def backward(
    implementation: str, grad_total: Tensor | None, grad: Tensor | None, total: Tensor, stats: Tensor, weight: Tensor,
    bias: Tensor, residual: torch.dtype | None, normalised: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:  # fmt: skip
    """Gradients to ``x``, to a residual of dtype ``residual`` (None: there was none), to weight and to bias."""
    grad_x = like(total, total.dtype)
    other = like(total, residual) if residual not in (None, total.dtype) else None
    all_parts, parts = parts_of(implementation, weight, stats)
    backward_into(implementation, grad_total, grad, total, stats, weight, bias, grad_x, other, normalised, parts)
    return grad_x, None if residual is None else grad_x if other is None else other, *norm_grads(all_parts, weight)


def backward_into(
    implementation: str, grad_total: Tensor | None, grad: Tensor | None, total: Tensor, stats: Tensor, weight: Tensor,
    bias: Tensor, grad_x: Tensor, grad_residual: Tensor | None, normalised: Tensor | None, parts: Tensor,
) -> None:  # fmt: skip
    """Writes what is not None: gradients to ``x`` and the residual, the recomputed norm, and parts of the norm's own."""
    given, written = map(_rows, (grad_total, grad, total)), map(_rows, (grad_x, grad_residual, normalised))
    op_of("add_layer_norm_backward", implementation)(*given, stats, weight, bias, *written, parts)


def parts_of(implementation: str, weight: Tensor, *stats: Tensor) -> tuple[Tensor, ...]:
    """Room for the summands (P, 2, C) of the gradients to one norm's weight and bias: all of it, and each call's share."""
    counts = [1 if implementation == "cpp" else min(PARTS, -(-len(s) // 8)) for s in stats]
    parts = stats[0].new_empty(sum(counts), 2, len(weight))
    return parts, *parts.split(counts)


def norm_grads(parts: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    """The gradients to weight and bias (C)."""
    return (column_sum(parts.flatten(1)).view(2, -1) if len(parts) > 1 else parts[0]).to(weight.dtype).unbind()
