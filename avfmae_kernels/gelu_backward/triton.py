"""gelu_backward in Triton: one pass over blocks of rows and columns, whose sums are added up as in column_sum."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from avfmae_kernels.column_sum.triton import add_up, scratch
from avfmae_kernels.triton_tools import bound, launch, store

ROOT_HALF = tl.constexpr(0.7071067811865476)
DENSITY_AT_0 = tl.constexpr(0.3989422804014327)  # of the normal distribution


@triton.jit
def gelu_backward_kernel(grad, x, grad_x, out, parts, tickets, sums, rows, C, P, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(bound(tl.program_id(0)) * ROWS, bound(rows), bound(P) * ROWS):
        row = start + tl.arange(0, ROWS)
        i = row.to(tl.int64)[:, None] * C + column[None, :]
        mask = (row < rows)[:, None] & (column < C)[None, :]
        v = tl.load(x + i, mask=mask, other=0).to(tl.float32)
        g = tl.load(grad + i, mask=mask, other=0).to(tl.float32)
        below = 0.5 * (1 + tl.erf(v * ROOT_HALF))
        g *= below + v * DENSITY_AT_0 * tl.exp(-0.5 * v * v)
        store(grad_x + i, g, mask)
        store(out + i, v * below, mask)
        total += g
    add_up(total, parts, tickets, sums, C, P, ROWS, COLUMNS)


CONFIGURATIONS = [
    {"ROWS": 16, "COLUMNS": 128, "num_warps": 4},
    {"ROWS": 8, "COLUMNS": 256, "num_warps": 4},
    {"ROWS": 16, "COLUMNS": 64, "num_warps": 4},
    {"ROWS": 16, "COLUMNS": 128, "num_warps": 8},
]


def gelu_backward(grad: Tensor, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    grad_x, out, sums = x.new_empty(x.shape), x.new_empty(x.shape), x.new_empty(x.shape[-1:], dtype=dtype)
    flat = x.view(-1, x.shape[-1])
    parts, tickets = scratch(flat)
    grid = lambda meta: (len(parts), triton.cdiv(flat.shape[1], meta["COLUMNS"]))  # noqa: E731
    launch(gelu_backward_kernel, grid, CONFIGURATIONS, grad, x, grad_x, out, parts, tickets, sums, *flat.shape, len(parts))
    return grad_x, out, sums
