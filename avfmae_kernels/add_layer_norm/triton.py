"""add_layer_norm in Triton: a program holds some rows; backward, one takes every n-th block, and sums the weights' gradients."""

import triton
import triton.language as tl
from torch import Tensor

from avfmae_kernels.triton_tools import bound, launch, rounded, store


@triton.jit
def _places(row, inner, outer_stride, inner_stride):
    """Offsets of rows that are numbered through."""
    i, j = (row // inner).to(tl.int64), (row % inner).to(tl.int64)
    return (i * outer_stride + j * inner_stride)[:, None]


@triton.jit
def add_layer_norm_kernel(
    x, residual, weight, bias, total, out, stats, eps, C, inner, rows,
    x_outer, x_inner, residual_outer, residual_inner, total_outer, total_inner, out_outer, out_inner,
    ADD: tl.constexpr, KEEP: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row, column = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, COLUMNS)[None, :]
    mask = (row < rows)[:, None] & (column < C)
    v = tl.load(x + _places(row, inner, x_outer, x_inner) + column, mask=mask, other=0).to(tl.float32)
    if ADD:
        v += tl.load(residual + _places(row, inner, residual_outer, residual_inner) + column, mask=mask, other=0).to(tl.float32)
    if KEEP:
        kept = rounded(v, total)
        tl.store(total + _places(row, inner, total_outer, total_inner) + column, kept, mask=mask)
        v = kept.to(tl.float32)  # what is normalised is the sum as it is stored
    mean = tl.sum(v, 1) / C
    v = tl.where(mask, v - mean[:, None], 0.0)
    inverse = 1 / tl.sqrt(tl.sum(v * v, 1) / C + eps)
    w = tl.load(weight + column, mask=column < C, other=0).to(tl.float32)
    b = tl.load(bias + column, mask=column < C, other=0).to(tl.float32)
    store(out + _places(row, inner, out_outer, out_inner) + column, v * inverse[:, None] * w + b, mask)
    tl.store(stats + 2 * row, mean, mask=row < rows)
    tl.store(stats + 2 * row + 1, inverse, mask=row < rows)


@triton.jit
def add_layer_norm_backward_kernel(
    grad_total, grad, total, stats, weight, bias, grad_x, grad_residual, normalised, parts, C, inner, rows, P,
    gt_outer, gt_inner, g_outer, g_inner, total_outer, total_inner, s_outer, s_inner, sr_outer, sr_inner,
    normalised_outer, normalised_inner,
    GRAD_TOTAL: tl.constexpr, GRAD: tl.constexpr, RESIDUAL: tl.constexpr, RECOMPUTE: tl.constexpr, COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    part, column = tl.program_id(0), tl.arange(0, COLUMNS)[None, :]
    w = tl.load(weight + column, mask=column < C, other=0).to(tl.float32)
    b = tl.load(bias + column, mask=column < C, other=0).to(tl.float32)
    d_weight = tl.zeros((ROWS, COLUMNS), tl.float32)
    d_bias = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(bound(part) * ROWS, bound(rows), bound(P) * ROWS):
        row = start + tl.arange(0, ROWS)
        mask = (row < rows)[:, None] & (column < C)
        d = tl.zeros((ROWS, COLUMNS), tl.float32)
        if GRAD_TOTAL:
            d += tl.load(grad_total + _places(row, inner, gt_outer, gt_inner) + column, mask=mask, other=0).to(tl.float32)
        if GRAD:
            mean = tl.load(stats + 2 * row, mask=row < rows, other=0)
            inverse = tl.load(stats + 2 * row + 1, mask=row < rows, other=0)
            v = tl.load(total + _places(row, inner, total_outer, total_inner) + column, mask=mask, other=0).to(tl.float32)
            v = tl.where(mask, (v - mean[:, None]) * inverse[:, None], 0.0)
            g = tl.load(grad + _places(row, inner, g_outer, g_inner) + column, mask=mask, other=0).to(tl.float32)
            d_weight += g * v
            d_bias += g
            g *= w
            d += inverse[:, None] * (g - (tl.sum(g, 1) / C)[:, None] - v * (tl.sum(g * v, 1) / C)[:, None])
            if RECOMPUTE:
                store(normalised + _places(row, inner, normalised_outer, normalised_inner) + column, v * w + b, mask)
        store(grad_x + _places(row, inner, s_outer, s_inner) + column, d, mask)
        if RESIDUAL:
            store(grad_residual + _places(row, inner, sr_outer, sr_inner) + column, d, mask)
    c = tl.arange(0, COLUMNS)
    tl.store(parts + part * 2 * C + c, tl.sum(d_weight, 0), mask=c < C)
    tl.store(parts + part * 2 * C + C + c, tl.sum(d_bias, 0), mask=c < C)


FORWARD = [{"ROWS": rows, "num_warps": warps} for rows, warps in ((4, 4), (1, 2), (8, 8), (2, 4))]
BACKWARD = [{"ROWS": rows, "num_warps": warps} for rows, warps in ((4, 4), (4, 8), (8, 8), (1, 4))]


def _strides(*views: Tensor | None) -> list[int]:
    return [stride for v in views for stride in ((0, 0) if v is None else v.stride()[:2])]


def add_layer_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float, sum: Tensor | None, normalised: Tensor,
    stats: Tensor,
) -> None:  # fmt: skip
    outer, inner, C = x.shape
    launch(
        add_layer_norm_kernel, lambda meta: (triton.cdiv(outer * inner, meta["ROWS"]),), FORWARD,
        x, x if residual is None else residual, weight, bias, x if sum is None else sum, normalised, stats, eps, C, inner,
        outer * inner, *_strides(x, residual, sum, normalised),
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
        add_layer_norm_backward_kernel, (len(parts),), BACKWARD,
        *given, sum, stats, weight, bias, grad_x, *wanted, parts, C, inner, outer * inner, len(parts),
        *_strides(grad_sum, grad_normalised, sum, grad_x, grad_residual, normalised),
        GRAD_TOTAL=grad_sum is not None, GRAD=grad_normalised is not None, RESIDUAL=grad_residual is not None,
        RECOMPUTE=normalised is not None, COLUMNS=triton.next_power_of_2(C),
    )  # fmt: skip
