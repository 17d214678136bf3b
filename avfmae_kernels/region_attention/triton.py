"""region_attention in Triton: whole sequences, packed several to a tile where they are short, one head a program.

The logits of a tile that belong to two different sequences are set to -inf, so that one product serves all of them.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from avfmae_kernels.cross_attention import triton as few_keys
from avfmae_kernels.triton_tools import dot, launch, registers, store, tile_of


@triton.jit
def _tile(rows_of_all, S: tl.constexpr, PACK: tl.constexpr, TILE: tl.constexpr):
    """Of each row of a tile: its row in the batch, its sequence, its place there, and whether it exists."""
    lane = tl.arange(0, TILE)
    row = tl.program_id(0).to(tl.int64) * (PACK * S) + lane
    return row, row // S, row % S, (lane < PACK * S) & (row < rows_of_all)


@triton.jit
def _probabilities(q, k, sequence, real, scale):
    """softmax(q kᵀ·scale) over the keys of the same sequence; rows that do not exist attend to themselves."""
    logits = dot(q, tl.trans(k)) * scale
    sequence = tl.where(real, sequence, -1)
    logits = tl.where(sequence[:, None] == sequence[None, :], logits, float("-inf"))
    p = tl.exp(logits - tl.max(logits, 1)[:, None])
    return p / tl.sum(p, 1)[:, None]


@triton.jit
def region_attention_kernel(
    qkv, out, rows_of_all, stride_n, stride_s, scale, C, S: tl.constexpr, D: tl.constexpr,
    PACK: tl.constexpr, TILE: tl.constexpr, D_TILE: tl.constexpr,
):  # fmt: skip
    row, sequence, place, real = _tile(rows_of_all, S, PACK, TILE)
    d = tl.arange(0, D_TILE)
    head = tl.program_id(1) * D
    at = (sequence * stride_n + place * stride_s)[:, None] + head + d[None, :]
    mask = real[:, None] & (d < D)[None, :]
    q = tl.load(qkv + at, mask=mask, other=0)
    k = tl.load(qkv + at + C, mask=mask, other=0)
    v = tl.load(qkv + at + 2 * C, mask=mask, other=0)
    p = _probabilities(q, k, sequence, real, scale)
    answer = dot(p, v)
    store(out + row[:, None] * C + head + d[None, :], answer, mask)


@triton.jit
def region_attention_backward_kernel(
    grad, qkv, dqkv, out, rows_of_all, stride_n, stride_s, scale, C, S: tl.constexpr, D: tl.constexpr,
    PACK: tl.constexpr, TILE: tl.constexpr, D_TILE: tl.constexpr, RECOMPUTE: tl.constexpr,
):  # fmt: skip
    row, sequence, place, real = _tile(rows_of_all, S, PACK, TILE)
    d = tl.arange(0, D_TILE)
    head = tl.program_id(1) * D
    at = (sequence * stride_n + place * stride_s)[:, None] + head + d[None, :]
    packed = row[:, None] * C + head + d[None, :]
    mask = real[:, None] & (d < D)[None, :]
    q = tl.load(qkv + at, mask=mask, other=0)
    k = tl.load(qkv + at + C, mask=mask, other=0)
    v = tl.load(qkv + at + 2 * C, mask=mask, other=0)
    g = tl.load(grad + packed, mask=mask, other=0)
    p = _probabilities(q, k, sequence, real, scale)
    if RECOMPUTE:
        answer = dot(p, v)
        store(out + packed, answer, mask)
    dv = dot(tl.trans(p), g)
    dp = dot(g, tl.trans(v))
    ds = p * (dp - tl.sum(p * dp, 1)[:, None]) * scale
    dq = dot(ds, k)
    dk = dot(tl.trans(ds), q)
    wide = dqkv + row[:, None] * (3 * C) + head + d[None, :]
    store(wide, dq, mask)
    store(wide + C, dk, mask)
    store(wide + 2 * C, dv, mask)


LONGEST = 64  # rows that a tile of whole sequences takes; longer ones are attention to few keys, block by block


def configurations(S: int, D: int, dtype: torch.dtype) -> list[dict]:
    """Tiles and warps worth trying for sequences of S rows: none of them spills (``avfmae_benchmarks.aot``). The first is used
    untuned."""
    least, wide = tile_of(S), registers(D, dtype)
    largest = max(least, 64 // wide)
    return [
        {"PACK": tile // S, "TILE": tile, "num_warps": warps * wide}
        for tile in (least, 2 * least)
        if tile <= largest
        for warps in {16: (1, 2), 32: (2, 4), 64: (4,)}.get(tile, ())
    ]


def _arguments(qkv: Tensor, heads: int) -> tuple[tuple, dict]:
    N, S, C = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    D = C // heads
    numbers = (N * S, qkv.stride(0), qkv.stride(1), D**-0.5, C)
    return numbers, {"S": S, "D": D, "D_TILE": tile_of(D)}


def _grid(qkv: Tensor, heads: int):
    return lambda meta: (triton.cdiv(qkv.shape[0], meta["PACK"]), heads)


def region_attention(qkv: Tensor, heads: int) -> Tensor:
    C = qkv.shape[2] // 3
    if qkv.shape[1] > LONGEST:
        return few_keys.cross_attention(qkv[..., :C], qkv[..., C:], heads)
    out = qkv.new_empty((*qkv.shape[:2], C))
    numbers, constants = _arguments(qkv, heads)
    launch(
        region_attention_kernel, _grid(qkv, heads), configurations(qkv.shape[1], qkv.shape[2] // 3 // heads, qkv.dtype),
        qkv, out, *numbers, **constants,
    )  # fmt: skip
    return out


def region_attention_backward(grad: Tensor, qkv: Tensor, heads: int, recompute: bool) -> tuple[Tensor, Tensor]:
    C, dqkv = qkv.shape[2] // 3, qkv.new_empty(qkv.shape)
    if qkv.shape[1] > LONGEST:
        return dqkv, few_keys.backward_into(grad, qkv[..., :C], qkv[..., C:], heads, recompute, dqkv[..., :C], dqkv[..., C:])
    out = qkv.new_empty(grad.shape if recompute else (0,))
    numbers, constants = _arguments(qkv, heads)
    launch(
        region_attention_backward_kernel, _grid(qkv, heads), configurations(qkv.shape[1], qkv.shape[2] // 3 // heads, qkv.dtype),
        grad, qkv, dqkv, out, *numbers, **constants, RECOMPUTE=recompute,
    )  # fmt: skip
    return dqkv, out
