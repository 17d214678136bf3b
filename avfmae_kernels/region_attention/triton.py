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
def region_attention_kernel(
    grad, qkv, dqkv, out, rows_of_all, stride_n, stride_s, scale, C, S: tl.constexpr, D: tl.constexpr,
    PACK: tl.constexpr, TILE: tl.constexpr, D_TILE: tl.constexpr, OUT: tl.constexpr, BACKWARD: tl.constexpr,
):  # fmt: skip
    """The answer, where OUT, and the gradients, where BACKWARD, of one head of a tile of whole sequences."""
    lane, d = tl.arange(0, TILE), tl.arange(0, D_TILE)
    row = tl.program_id(0).to(tl.int64) * (PACK * S) + lane
    real = (lane < PACK * S) & (row < rows_of_all)
    mask, column = real[:, None] & (d < D)[None, :], tl.program_id(1) * D + d[None, :]
    at = (row // S * stride_n + row % S * stride_s)[:, None] + column
    q = tl.load(qkv + at, mask=mask, other=0)
    k = tl.load(qkv + at + C, mask=mask, other=0)
    v = tl.load(qkv + at + 2 * C, mask=mask, other=0)
    logits = dot(q, tl.trans(k)) * scale
    sequence = tl.where(real, row // S, -1)  # rows that do not exist attend to themselves
    logits = tl.where(sequence[:, None] == sequence[None, :], logits, float("-inf"))
    p = tl.exp(logits - tl.max(logits, 1)[:, None])
    p = p / tl.sum(p, 1)[:, None]
    if OUT:
        answer = dot(p, v)
        store(out + row[:, None] * C + column, answer, mask)
    if BACKWARD:
        g = tl.load(grad + row[:, None] * C + column, mask=mask, other=0)
        dv = dot(tl.trans(p), g)
        dp = dot(g, tl.trans(v))
        ds = p * (dp - tl.sum(p * dp, 1)[:, None]) * scale
        dq = dot(ds, k)
        dk = dot(tl.trans(ds), q)
        wide = dqkv + row[:, None] * (3 * C) + column
        store(wide, dq, mask)
        store(wide + C, dk, mask)
        store(wide + 2 * C, dv, mask)


LONGEST = 64  # rows that a tile of whole sequences takes; longer ones are attention to few keys, block by block


def configurations(S: int, D: int, dtype: torch.dtype) -> list[dict]:
    """Tiles and warps worth trying for sequences of S rows: none of them spills. The first is used untuned."""
    least, wide = tile_of(S), registers(D, dtype)
    largest = max(least, 64 // wide)
    return [
        {"PACK": tile // S, "TILE": tile, "num_warps": warps * wide}
        for tile in (least, 2 * least)
        if tile <= largest
        for warps in {16: (1, 2), 32: (2, 4), 64: (4,)}.get(tile, ())
    ]


def _launch(grad: Tensor, qkv: Tensor, dqkv: Tensor, out: Tensor, heads: int, **constants: bool) -> None:
    (N, S), C = qkv.shape[:2], qkv.shape[2] // 3
    D = C // heads
    launch(
        region_attention_kernel, lambda meta: (triton.cdiv(N, meta["PACK"]), heads), configurations(S, D, qkv.dtype),
        grad, qkv, dqkv, out, N * S, *qkv.stride()[:2], D**-0.5, C, S=S, D=D, D_TILE=tile_of(D), **constants,
    )  # fmt: skip


def region_attention(qkv: Tensor, heads: int) -> Tensor:
    C = qkv.shape[2] // 3
    if qkv.shape[1] > LONGEST:
        return few_keys.cross_attention(qkv[..., :C], qkv[..., C:], heads)
    out = qkv.new_empty((*qkv.shape[:2], C))
    _launch(out, qkv, qkv, out, heads, OUT=True, BACKWARD=False)
    return out


def region_attention_backward(grad: Tensor, qkv: Tensor, heads: int, recompute: bool) -> tuple[Tensor, Tensor]:
    C, dqkv = qkv.shape[2] // 3, qkv.new_empty(qkv.shape)
    if qkv.shape[1] > LONGEST:
        return dqkv, few_keys.backward_into(grad, qkv[..., :C], qkv[..., C:], heads, recompute, dqkv[..., :C], dqkv[..., C:])
    out = qkv.new_empty(grad.shape if recompute else (0,))
    _launch(grad, qkv, dqkv, out, heads, OUT=recompute, BACKWARD=True)
    return dqkv, out
