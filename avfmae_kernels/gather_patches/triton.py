"""gather_patches in Triton: one program a row."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from avfmae_kernels.triton_tools import launch, store


@triton.jit
def gather_patches_kernel(
    video, index, out,
    mean_r, mean_g, mean_b, std_r, std_g, std_b, rows_per_clip, T, H, W,
    PT: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    token = tl.load(index + row)
    columns, lines = W // PW, H // PH
    inside = (token >= 0) & (token < T // PT * lines * columns)
    token = tl.where(inside, token, 0)  # never read outside the clip; NaN below makes the mistake visible
    x, y, t = token % columns, token // columns % lines, token // (columns * lines)

    # One lane a pixel: the three channels of a pixel are three loads of neighbouring bytes.
    pixels: tl.constexpr = PT * PH * PW
    p = tl.arange(0, BLOCK)
    dx, dy, dt = p % PW, p // PW % PH, p // (PW * PH)
    frame = row // rows_per_clip * T + t * PT + dt
    place = (frame * H + y * PH + dy) * W + x * PW + dx
    lane = p < pixels
    for c in tl.static_range(3):
        mean = mean_r if c == 0 else (mean_g if c == 1 else mean_b)
        std = std_r if c == 0 else (std_g if c == 1 else std_b)
        value = tl.load(video + place * 3 + c, mask=lane, other=0).to(tl.float32)
        value = tl.where(inside, (value / 255.0 - mean) / std, float("nan"))
        store(out + (row * 3 + c) * pixels + p, value, lane)


def gather_patches(
    video: Tensor, index: Tensor, patch: list[int], mean: list[float], std: list[float], dtype: torch.dtype,
    boxes: Tensor | None = None, size: list[int] | None = None,
) -> Tensor:  # fmt: skip
    pt, ph, pw = patch
    out = video.new_empty((*index.shape, 3 * pt * ph * pw), dtype=dtype)
    if out.numel():
        launch(
            gather_patches_kernel, (index.numel(),), [{"num_warps": 4}, {"num_warps": 2}, {"num_warps": 8}],
            video, index, out, *mean, *std, index.shape[1], *video.shape[1:4],
            PT=pt, PH=ph, PW=pw, BLOCK=triton.next_power_of_2(pt * ph * pw),
        )  # fmt: skip
    return out
