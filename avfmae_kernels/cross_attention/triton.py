"""cross_attention in Triton: the shorter side stays in registers, the longer one streams by.

Few keys: a program holds a head's keys and values and takes the queries block by block. Few queries: it holds the queries and
takes the keys block by block, with a running maximum and sum. Backward is one program a head, so that the gradients of the
shorter side are sums in registers and need no atomics.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from avfmae_kernels.triton_tools import bound, dot, launch, registers, store, tile_of


@triton.jit
def _head(H, D: tl.constexpr, D_TILE: tl.constexpr):
    """The program's sequence, its head's columns, and which of those exist."""
    task, d = tl.program_id(0).to(tl.int64), tl.arange(0, D_TILE)
    return task // H, task % H * D + d, (d < D)[None, :]


@triton.jit
def _softmax(logits, real):
    logits = tl.where(real, logits, float("-inf"))
    p = tl.exp(logits - tl.max(logits, 1)[:, None])
    return p / tl.sum(p, 1)[:, None]


@triton.jit
def _keys_and_values(kv, j, kv_row, d, mask, C):
    """Rows j of a head's keys and values (rows, D_TILE)."""
    at = kv + j[:, None] * kv_row + d[None, :]
    return tl.load(at, mask=mask, other=0), tl.load(at + C, mask=mask, other=0)


@triton.jit
def few_keys_kernel(
    q, kv, out, Nq, Nk, q_batch, q_row, kv_batch, kv_row, scale, C, H,
    D: tl.constexpr, D_TILE: tl.constexpr, FEW: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    batch, d, wide = _head(H, D, D_TILE)
    j = tl.arange(0, FEW)
    k, v = _keys_and_values(kv + batch * kv_batch, j, kv_row, d, (j < Nk)[:, None] & wide, C)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = (i < Nq)[:, None] & wide
    x = tl.load(q + batch * q_batch + i[:, None] * q_row + d[None, :], mask=mask, other=0)
    p = _softmax(dot(x, tl.trans(k)) * scale, (j < Nk)[None, :])
    answer = dot(p, v)
    store(out + batch * Nq * C + i[:, None] * C + d[None, :], answer, mask)


@triton.jit
def few_keys_backward_kernel(
    grad, q, kv, dq, dkv, out, Nq, Nk, q_batch, q_row, kv_batch, kv_row, scale, C, H, dq_row, dkv_row,
    D: tl.constexpr, D_TILE: tl.constexpr, FEW: tl.constexpr, BLOCK: tl.constexpr, OUT: tl.constexpr,
):  # fmt: skip
    batch, d, wide = _head(H, D, D_TILE)
    j = tl.arange(0, FEW)
    key = (j < Nk)[:, None] & wide
    k, v = _keys_and_values(kv + batch * kv_batch, j, kv_row, d, key, C)
    dk = tl.zeros((FEW, D_TILE), tl.float32)
    dv = tl.zeros((FEW, D_TILE), tl.float32)
    for start in range(0, bound(Nq), BLOCK):
        i = start + tl.arange(0, BLOCK)
        mask = (i < Nq)[:, None] & wide
        packed = batch * Nq * C + i[:, None] * C + d[None, :]
        x = tl.load(q + batch * q_batch + i[:, None] * q_row + d[None, :], mask=mask, other=0)
        g = tl.load(grad + packed, mask=mask, other=0)
        p = _softmax(dot(x, tl.trans(k)) * scale, (j < Nk)[None, :])
        if OUT:
            answer = dot(p, v)
            store(out + packed, answer, mask)
        dv += dot(tl.trans(p), g)
        dp = dot(g, tl.trans(v))
        ds = p * (dp - tl.sum(p * dp, 1)[:, None]) * scale
        dk += dot(tl.trans(ds), x)
        store(dq + batch * Nq * dq_row + i[:, None] * dq_row + d[None, :], dot(ds, k), mask)
    to = dkv + batch * Nk * dkv_row + j[:, None] * dkv_row + d[None, :]
    store(to, dk, key)
    store(to + C, dv, key)


@triton.jit
def few_queries_kernel(
    grad, q, kv, dq, dkv, out, Nq, Nk, q_batch, q_row, kv_batch, kv_row, scale, C, H,
    D: tl.constexpr, D_TILE: tl.constexpr, FEW: tl.constexpr, BLOCK: tl.constexpr, OUT: tl.constexpr, BACKWARD: tl.constexpr,
):  # fmt: skip
    """The answer, where OUT, and the gradients, where BACKWARD: the keys stream by once for each."""
    batch, d, wide = _head(H, D, D_TILE)
    i = tl.arange(0, FEW)
    mask = (i < Nq)[:, None] & wide
    packed = batch * Nq * C + i[:, None] * C + d[None, :]
    x = tl.load(q + batch * q_batch + i[:, None] * q_row + d[None, :], mask=mask, other=0)
    # of each query the largest logit, the sum of exponentials relative to it, and the answer
    top = tl.full((FEW,), float("-inf"), tl.float32)
    total = tl.zeros((FEW,), tl.float32)
    answer = tl.zeros((FEW, D_TILE), tl.float32)
    for start in range(0, bound(Nk), BLOCK):
        j = start + tl.arange(0, BLOCK)
        k, v = _keys_and_values(kv + batch * kv_batch, j, kv_row, d, (j < Nk)[:, None] & wide, C)
        logits = dot(x, tl.trans(k)) * scale
        logits = tl.where((j < Nk)[None, :], logits, float("-inf"))
        higher = tl.maximum(top, tl.max(logits, 1))
        p = tl.exp(logits - higher[:, None])
        fade = tl.exp(top - higher)
        total = total * fade + tl.sum(p, 1)
        answer = answer * fade[:, None] + dot(p, v)
        top = higher
    answer = answer / total[:, None]
    if OUT:
        store(out + packed, answer, mask)
    if BACKWARD:
        g = tl.load(grad + packed, mask=mask, other=0)
        mean = tl.sum(answer * g.to(tl.float32), 1)  # Σ_j p_j·dp_j, as answer = Σ_j p_j·v_j
        grad_q = tl.zeros((FEW, D_TILE), tl.float32)
        for start in range(0, bound(Nk), BLOCK):
            j = start + tl.arange(0, BLOCK)
            key = (j < Nk)[:, None] & wide
            k, v = _keys_and_values(kv + batch * kv_batch, j, kv_row, d, key, C)
            logits = dot(x, tl.trans(k)) * scale
            p = tl.where((j < Nk)[None, :], tl.exp(logits - top[:, None]) / total[:, None], 0.0)
            dp = dot(g, tl.trans(v))
            ds = p * (dp - mean[:, None]) * scale
            grad_q += dot(ds, k)
            to = dkv + batch * Nk * (2 * C) + j[:, None] * (2 * C) + d[None, :]
            store(to, dot(tl.trans(ds), x), key)
            store(to + C, dot(tl.trans(p), g), key)
        store(dq + packed, grad_q, mask)


def configurations(few: int, many: int, D: int, dtype: torch.dtype) -> list[dict]:
    """Blocks of the longer side and warps worth trying: none of them spills. The first is used untuned."""
    wide, most = registers(D, dtype), 8 if dtype == torch.float32 else 16
    choices = (
        ((16, 1), (16, 2), (32, 4))
        if few <= 16
        else ((16, 2), (16, 4), (32, 4), (32, 8))
        if few * wide <= 32
        else ((16, 8 if few > 32 else 2 if dtype == torch.float32 else 4),)
    )
    kept = [{"BLOCK": block, "num_warps": min(most, warps * wide)} for block, warps in choices if block <= tile_of(many)]
    return kept or [{"BLOCK": 16, "num_warps": 2 * wide}]


def _arguments(q: Tensor, kv: Tensor, heads: int) -> tuple[bool, list[dict], tuple, dict]:
    """Whether the keys are the shorter side; the configurations; the kernels' numbers and constants."""
    Nq, Nk, D = q.shape[1], kv.shape[1], q.shape[2] // heads
    few, many = sorted((Nq, Nk))
    numbers = (Nq, Nk, *q.stride()[:2], *kv.stride()[:2], D**-0.5, q.shape[2], heads)
    return few == Nk, configurations(few, many, D, q.dtype), numbers, {"D": D, "D_TILE": tile_of(D), "FEW": tile_of(few)}


def cross_attention(q: Tensor, kv: Tensor, heads: int) -> Tensor:
    out, tasks = q.new_empty(q.shape), len(q) * heads
    few_keys, choices, numbers, constants = _arguments(q, kv, heads)
    if few_keys:
        blocks = lambda meta: (tasks, triton.cdiv(q.shape[1], meta["BLOCK"]))  # noqa: E731
        launch(few_keys_kernel, blocks, choices, q, kv, out, *numbers, **constants)
    else:
        launch(few_queries_kernel, (tasks,), choices, q, q, kv, out, kv, out, *numbers, **constants, OUT=True, BACKWARD=False)
    return out


def cross_attention_backward(grad: Tensor, q: Tensor, kv: Tensor, heads: int, recompute: bool) -> tuple[Tensor, Tensor, Tensor]:
    dq, dkv = q.new_empty(q.shape), kv.new_empty(kv.shape)
    return dq, dkv, backward_into(grad, q, kv, heads, recompute, dq, dkv)


def backward_into(grad: Tensor, q: Tensor, kv: Tensor, heads: int, recompute: bool, dq: Tensor, dkv: Tensor) -> Tensor:
    """Writes the gradients; with few keys their rows may be parts of longer ones. Returns the recomputed output, or nothing."""
    out, grid = q.new_empty(q.shape if recompute else (0,)), (len(q) * heads,)
    few_keys, choices, numbers, constants = _arguments(q, kv, heads)
    kernel = few_keys_backward_kernel if few_keys else few_queries_kernel
    more = (dq.stride(1), dkv.stride(1)) if few_keys else ()
    constants |= {"OUT": recompute} if few_keys else {"OUT": recompute, "BACKWARD": True}
    launch(kernel, grid, choices, grad, q, kv, dq, dkv, out, *numbers, *more, **constants)
    return out
