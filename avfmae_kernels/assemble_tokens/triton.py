"""assemble_tokens in Triton: one program a token of the sequence, which is written once."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from avfmae_kernels.triton_tools import launch, store


@triton.jit
def assemble_tokens_kernel(
    visible, mask_token, positions, visible_index, mask_index, out, Nv, Nm, T, C, MASKS: tl.constexpr, COLUMNS: tl.constexpr
):
    clip, token = tl.program_id(0).to(tl.int64) // (Nv + Nm), tl.program_id(0).to(tl.int64) % (Nv + Nm)
    column = tl.arange(0, COLUMNS)
    seen = token < Nv
    place = tl.load(visible_index + clip * Nv + tl.where(seen, token, 0), mask=seen, other=0)
    # no mask mixes scalars and blocks: columns that are not read are those from `width` on
    width = tl.where(seen, C, 0)
    x = tl.load(visible + (clip * Nv + token) * C + column, mask=column < width, other=0).to(tl.float32)
    if MASKS:
        place += tl.load(mask_index + clip * Nm + tl.where(seen, 0, token - Nv), mask=token >= Nv, other=0)
        x += tl.load(mask_token + column, mask=column < C - width, other=0).to(tl.float32)
    known = (place >= 0) & (place < T)  # never read outside the table; NaN makes the mistake visible
    x += tl.load(positions + tl.where(known, place, 0) * C + column, mask=column < C, other=0).to(tl.float32)
    x = tl.where(known, x, float("nan"))
    store(out + (clip * (Nv + Nm) + token) * C + column, x, column < C)


def assemble_tokens(
    visible: Tensor, mask_token: Tensor | None, positions: Tensor, visible_index: Tensor, mask_index: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    (B, Nv, C), Nm = visible.shape, 0 if mask_index is None else mask_index.shape[1]
    out = visible.new_empty((B, Nv + Nm, C), dtype=dtype)
    if out.numel():
        launch(
            assemble_tokens_kernel, (B * (Nv + Nm),), [{"num_warps": 1}, {"num_warps": 2}, {"num_warps": 4}],
            visible, visible if mask_token is None else mask_token, positions, visible_index,
            visible_index if mask_index is None else mask_index, out, Nv, Nm, len(positions), C,
            MASKS=mask_token is not None, COLUMNS=triton.next_power_of_2(C),
        )  # fmt: skip
    return out
