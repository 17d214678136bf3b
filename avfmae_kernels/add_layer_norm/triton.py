"""add_layer_norm in Triton: a program holds a row; backward, one takes every n-th row and sums the weights' gradients."""

import triton
import triton.language as tl
from torch import Tensor

from avfmae_kernels.triton_tools import bound, launch, rounded, store


@triton.jit
def add_layer_norm_kernel(
    x, residual, weight, bias, total, out, stats, eps, C, inner,
    x_outer, x_inner, residual_outer, residual_inner, total_outer, total_inner, out_outer, out_inner,
    ADD: tl.constexpr, KEEP: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    i, j = row // inner, row % inner
    column = tl.arange(0, COLUMNS)
    mask = column < C
    v = tl.load(x + i * x_outer + j * x_inner + column, mask=mask, other=0).to(tl.float32)
    if ADD:
        v += tl.load(residual + i * residual_outer + j * residual_inner + column, mask=mask, other=0).to(tl.float32)
    if KEEP:
        kept = rounded(v, total)
        tl.store(total + i * total_outer + j * total_inner + column, kept, mask=mask)
        v = kept.to(tl.float32)  # what is normalised is the sum as it is stored
    mean = tl.sum(v, 0) / C
    v = tl.where(mask, v - mean, 0.0)
    inverse = 1 / tl.sqrt(tl.sum(v * v, 0) / C + eps)
    w = tl.load(weight + column, mask=mask, other=0).to(tl.float32)
    b = tl.load(bias + column, mask=mask, other=0).to(tl.float32)
    store(out + i * out_outer + j * out_inner + column, v * inverse * w + b, mask)
    tl.store(stats + 2 * row, mean)
    tl.store(stats + 2 * row + 1, inverse)


@triton.jit
def add_layer_norm_backward_kernel(
    grad_total, grad, total, stats, weight, bias, grad_x, grad_residual, normalised, parts, C, inner, rows, P,
    gt_outer, gt_inner, g_outer, g_inner, total_outer, total_inner, s_outer, s_inner, sr_outer, sr_inner,
    normalised_outer, normalised_inner,
    GRAD_TOTAL: tl.constexpr, GRAD: tl.constexpr, RESIDUAL: tl.constexpr, RECOMPUTE: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    mask = column < C
    w = tl.load(weight + column, mask=mask, other=0).to(tl.float32)
    b = tl.load(bias + column, mask=mask, other=0).to(tl.float32)
    d_weight = tl.zeros((COLUMNS,), tl.float32)
    d_bias = tl.zeros((COLUMNS,), tl.float32)
    for row in range(bound(part), bound(rows), bound(P)):
        i, j = row // inner, row % inner
        d = tl.zeros((COLUMNS,), tl.float32)
        if GRAD_TOTAL:
            d += tl.load(grad_total + i * gt_outer + j * gt_inner + column, mask=mask, other=0).to(tl.float32)
        if GRAD:
            inverse = tl.load(stats + 2 * row + 1)
            v = tl.load(total + i * total_outer + j * total_inner + column, mask=mask, other=0).to(tl.float32)
            v = tl.where(mask, (v - tl.load(stats + 2 * row)) * inverse, 0.0)
            g = tl.load(grad + i * g_outer + j * g_inner + column, mask=mask, other=0).to(tl.float32)
            d_weight += g * v
            d_bias += g
            g *= w
            d += inverse * (g - tl.sum(g, 0) / C - v * (tl.sum(g * v, 0) / C))
            if RECOMPUTE:
                store(normalised + i * normalised_outer + j * normalised_inner + column, v * w + b, mask)
        store(grad_x + i * s_outer + j * s_inner + column, d, mask)
        if RESIDUAL:
            store(grad_residual + i * sr_outer + j * sr_inner + column, d, mask)
    tl.store(parts + part * 2 * C + column, d_weight, mask=mask)
    tl.store(parts + part * 2 * C + C + column, d_bias, mask=mask)


CONFIGURATIONS = [{"num_warps": 4}, {"num_warps": 2}, {"num_warps": 8}]


def _strides(*views: Tensor | None) -> list[int]:
    return [stride for v in views for stride in ((0, 0) if v is None else v.stride()[:2])]


def add_layer_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float, sum: Tensor | None, normalised: Tensor,
    stats: Tensor,
) -> None:  # fmt: skip
    outer, inner, C = x.shape
    launch(
        add_layer_norm_kernel, (outer * inner,), CONFIGURATIONS,
        x, x if residual is None else residual, weight, bias, x if sum is None else sum, normalised, stats, eps, C, inner,
        *_strides(x, residual, sum, normalised),
        ADD=residual is not None, KEEP=sum is not None, COLUMNS=triton.next_power_of_2(C),
    )  # fmt: skip


def add_layer_norm_backward(
    grad_sum: Tensor | None, grad_normalised: Tensor | None, sum: Tensor, stats: Tensor, weight: Tensor, bias: Tensor,
    grad_x: Tensor, grad_residual: Tensor | None, normalised: Tensor | None, parts: Tensor,
) -> None:  # fmt: skip
    outer, inner, C = sum.shape
    given = [sum if t is None else t for t in (grad_sum, grad_normalised)]
    wanted = [grad_x if t is None else t for t in (grad_residual, normalised)]
    launch(
        add_layer_norm_backward_kernel, (len(parts),), CONFIGURATIONS,
        *given, sum, stats, weight, bias, grad_x, *wanted, parts, C, inner, outer * inner, len(parts),
        *_strides(grad_sum, grad_normalised, sum, grad_x, grad_residual, normalised),
        GRAD_TOTAL=grad_sum is not None, GRAD=grad_normalised is not None, RESIDUAL=grad_residual is not None,
        RECOMPUTE=normalised is not None, COLUMNS=triton.next_power_of_2(C),
    )  # fmt: skip
