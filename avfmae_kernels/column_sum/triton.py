"""column_sum in Triton: programs sum every n-th block of rows, and the last of them to end sums what all of them found.

Who is last is chance; what it sums, and in which order, is not.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from avfmae_kernels.triton_tools import bound, launch, store

PARTS = 128  # programs that share a block of columns, at most
LEAST_ROWS = 64  # of a program
TALL = 4096  # rows; configurations are chosen apart for more and for fewer
LEAST_COLUMNS = 32  # of any configuration


@triton.jit
def add_up(total, parts, tickets, out, C, P, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The sums of all programs' totals (ROWS, COLUMNS), for a grid of (P, blocks of columns); the last of a block writes them."""
    part, block = tl.program_id(0), tl.program_id(1)
    column = block * COLUMNS + tl.arange(0, COLUMNS)
    r, real = tl.arange(0, ROWS), column < C
    tl.store(parts + part * C + column, tl.sum(total, 0), mask=real)
    tl.debug_barrier()  # all threads have written before one of them takes the ticket
    if tl.atomic_add(tickets + block, 1) == P - 1:
        total = tl.zeros((ROWS, COLUMNS), tl.float32)
        for start in range(0, bound(P), ROWS):
            at, mask = (start + r)[:, None] * C + column[None, :], (start + r < P)[:, None] & real[None, :]
            total += tl.load(parts + at, mask=mask, other=0, cache_modifier=".cg")
        store(out + column, tl.sum(total, 0), real)
        tl.store(tickets + block, 0)  # as the next call expects it


@triton.jit
def column_sum_kernel(x, parts, tickets, out, rows, C, stride, P, TALL: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(bound(tl.program_id(0)) * ROWS, bound(rows), bound(P) * ROWS):
        row = start + tl.arange(0, ROWS)
        at = row.to(tl.int64)[:, None] * stride + column[None, :]
        total += tl.load(x + at, mask=(row < rows)[:, None] & (column < C)[None, :], other=0).to(tl.float32)
    add_up(total, parts, tickets, out, C, P, ROWS, COLUMNS)


CONFIGURATIONS = [
    {"ROWS": 32, "COLUMNS": 64, "num_warps": 4},
    {"ROWS": 64, "COLUMNS": 64, "num_warps": 4},
    {"ROWS": 32, "COLUMNS": 128, "num_warps": 8},
    {"ROWS": 64, "COLUMNS": 32, "num_warps": 4},
]


@functools.cache
def _tickets(device: torch.device, stream: int, blocks: int) -> Tensor:
    """A zero for each block of columns; calls on one stream follow each other, and so can share them."""
    return torch.zeros(blocks, dtype=torch.int32, device=device)


def scratch(x: Tensor) -> tuple[Tensor, Tensor]:
    """For the sums of columns of ``x`` (rows, C): the programs' sums (P, C), and the tickets."""
    rows, C = x.shape
    stream = torch.cuda.current_stream(x.device).cuda_stream if x.is_cuda else 0
    parts = x.new_empty(min(PARTS, triton.cdiv(rows, LEAST_ROWS)), C, dtype=torch.float32)
    return parts, _tickets(x.device, stream, triton.next_power_of_2(triton.cdiv(C, LEAST_COLUMNS)))


def column_sum(x: Tensor, dtype: torch.dtype) -> Tensor:
    rows, C = x.shape
    out = x.new_empty(C, dtype=dtype)
    if not rows or not C:
        return out.zero_()
    parts, tickets = scratch(x)
    grid = lambda meta: (len(parts), triton.cdiv(C, meta["COLUMNS"]))  # noqa: E731
    launch(column_sum_kernel, grid, CONFIGURATIONS, x, parts, tickets, out, rows, C, x.stride(0), len(parts), TALL=rows > TALL)
    return out
