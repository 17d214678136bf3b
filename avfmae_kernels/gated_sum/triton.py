"""gated_sum in Triton: one pass over neighbouring numbers, rows where they lie."""

import triton
import triton.language as tl
from torch import Tensor

from avfmae_kernels.triton_tools import launch, store


@triton.jit
def _place(C, COLUMNS: tl.constexpr):
    """Row and columns of the program's block, and which of them exist."""
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    return tl.program_id(0).to(tl.int64), columns, columns < C


@triton.jit
def gated_sum_kernel(gate_a, a, gate_b, b, out, C, gate_a_row, a_row, gate_b_row, b_row, COLUMNS: tl.constexpr):
    row, column, mask = _place(C, COLUMNS)
    wa = tl.sigmoid(tl.load(gate_a + row * gate_a_row + column, mask=mask, other=0).to(tl.float32))
    wb = tl.sigmoid(tl.load(gate_b + row * gate_b_row + column, mask=mask, other=0).to(tl.float32))
    x = tl.load(a + row * a_row + column, mask=mask, other=0).to(tl.float32)
    y = tl.load(b + row * b_row + column, mask=mask, other=0).to(tl.float32)
    store(out + row * C + column, wa * x + wb * y, mask)


@triton.jit
def gated_sum_backward_kernel(
    grad, gate_a, a, gate_b, b, d_gate_a, d_a, d_gate_b, d_b, C, gate_a_row, a_row, gate_b_row, b_row, COLUMNS: tl.constexpr
):
    row, column, mask = _place(C, COLUMNS)
    at = row * C + column
    g = tl.load(grad + at, mask=mask, other=0).to(tl.float32)
    wa = tl.sigmoid(tl.load(gate_a + row * gate_a_row + column, mask=mask, other=0).to(tl.float32))
    wb = tl.sigmoid(tl.load(gate_b + row * gate_b_row + column, mask=mask, other=0).to(tl.float32))
    x = tl.load(a + row * a_row + column, mask=mask, other=0).to(tl.float32)
    y = tl.load(b + row * b_row + column, mask=mask, other=0).to(tl.float32)
    store(d_gate_a + at, g * x * wa * (1 - wa), mask)
    store(d_a + at, g * wa, mask)
    store(d_gate_b + at, g * y * wb * (1 - wb), mask)
    store(d_b + at, g * wb, mask)


CONFIGURATIONS = [{"COLUMNS": columns, "num_warps": warps} for columns, warps in ((512, 4), (256, 2), (1024, 4))]


def _rows(*tensors: Tensor) -> list[int]:
    return [t.stride(0) for t in tensors]


def _grid(a: Tensor):
    return lambda meta: (a.shape[0], triton.cdiv(a.shape[1], meta["COLUMNS"]))


def gated_sum(gate_a: Tensor, a: Tensor, gate_b: Tensor, b: Tensor) -> Tensor:
    out = a.new_empty(a.shape)
    launch(gated_sum_kernel, _grid(a), CONFIGURATIONS, gate_a, a, gate_b, b, out, a.shape[1], *_rows(gate_a, a, gate_b, b))
    return out


def gated_sum_backward(grad: Tensor, gate_a: Tensor, a: Tensor, gate_b: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    grads = tuple(x.new_empty(x.shape) for x in (gate_a, a, gate_b, b))
    rows = _rows(gate_a, a, gate_b, b)
    launch(gated_sum_backward_kernel, _grid(a), CONFIGURATIONS, grad, gate_a, a, gate_b, b, *grads, a.shape[1], *rows)
    return grads
