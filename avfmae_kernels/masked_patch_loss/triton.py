"""masked_patch_loss in Triton: one program a token, which reads its tubelet once and keeps the target in registers."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from avfmae_kernels.triton_crop import cropped_pixel, taps
from avfmae_kernels.triton_tools import launch, store


@triton.jit
def _target(
    source, base, frame, y, x0, box, H, W, stored_h, stored_w, TAPS_Y: tl.constexpr, TAPS_X: tl.constexpr, EPS:
    tl.constexpr, CHANNEL: tl.constexpr, C: tl.constexpr, PT: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, T_BLOCK:
    tl.constexpr, S_BLOCK: tl.constexpr,
):  # fmt: skip
    """One channel of a tubelet's standardised frame-difference target, (T_BLOCK, S_BLOCK); zero outside the tubelet."""
    t = tl.arange(0, T_BLOCK)[:, None]
    s = tl.arange(0, S_BLOCK)[None, :]
    inside = (t < PT) & (s < PH * PW)
    place = (t * H + s // PW) * W + s % PW
    if TAPS_Y:
        row, column = y + s // PW + 0 * t, x0 + s % PW + 0 * t
        x = cropped_pixel(source, box, frame + t, row, column, CHANNEL, inside, H, W, stored_h, stored_w, TAPS_Y, TAPS_X)
    else:
        x = tl.load(source + base + place * C + CHANNEL, mask=inside, other=0).to(tl.float32)
    pixels: tl.constexpr = PT * PH * PW
    mean = tl.sum(tl.sum(x, 1), 0) / pixels
    centred = tl.where(inside, x - mean, 0.0)
    variance = tl.sum(tl.sum(centred * centred, 1), 0) / (pixels - 1)
    inverse = 1.0 / (tl.sqrt(variance) + EPS)
    if TAPS_Y:  # the frame before is among those that were resampled
        of, other = tl.arange(0, T_BLOCK)[:, None, None], tl.arange(0, T_BLOCK)[None, :, None]
        before = tl.sum(tl.where(other == of - 1, x[None, :, :], 0.0), 1)
    else:
        before = tl.load(source + base + (place - H * W) * C + CHANNEL, mask=inside & (t > 0), other=0).to(tl.float32)
    return tl.where(inside, (x - tl.where(t > 0, before, mean)) * inverse, 0.0)


@triton.jit
def _tubelet(index, scored, row, rows_per_clip, T, H, W, C: tl.constexpr, PT: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr):
    """Where a row's tubelet begins: offset of its first number in the source, its first frame, row and column; whether its token
    lies in the clip, and whether it is scored.

    Tokens that do not, or are not, are given the clip's first tubelet: nothing outside is read.
    """
    token, wanted = tl.load(index + row), tl.load(scored + row) != 0
    columns, lines = W // PW, H // PH
    inside = (token >= 0) & (token < (T // PT) * lines * columns)
    token = tl.where(inside & wanted, token, 0)
    x, y, t = token % columns, token // columns % lines, token // (columns * lines)
    base = row // rows_per_clip * T * H * W * C + ((t * PT * H + y * PH) * W + x * PW) * C
    return base, row // rows_per_clip * T + t * PT, y * PH, x * PW, inside, wanted


@triton.jit
def masked_patch_loss_kernel(
    pred, source, index, scored, errors, rows_per_clip, T, H, W, boxes, stored_h, stored_w, TAPS_Y: tl.constexpr, TAPS_X:
    tl.constexpr, EPS: tl.constexpr, C: tl.constexpr, PT: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, T_BLOCK:
    tl.constexpr, S_BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    base, frame, y, x, inside, wanted = _tubelet(index, scored, row, rows_per_clip, T, H, W, C, PT, PH, PW)
    t = tl.arange(0, T_BLOCK)[:, None]
    s = tl.arange(0, S_BLOCK)[None, :]
    lane = (t < PT) & (s < PH * PW)
    error = 0.0
    for c in tl.static_range(C):
        target = _target(
            source, base, frame, y, x, boxes + row // rows_per_clip * 4, H, W, stored_h, stored_w, TAPS_Y, TAPS_X, EPS, c, C, PT,
            PH, PW, T_BLOCK, S_BLOCK,
        )  # fmt: skip
        p = tl.load(pred + row * (C * PT * PH * PW) + (t * (PH * PW) + s) * C + c, mask=lane, other=0).to(tl.float32)
        error += tl.sum(tl.sum((p - target) * (p - target), 1), 0)
    error = tl.where(inside, error / (C * PT * PH * PW), float("nan"))
    tl.store(errors + row, tl.where(wanted, error, 0.0))


@triton.jit
def masked_patch_loss_backward_kernel(
    grad, pred, source, index, scored, grad_pred, rows_per_clip, T, H, W, boxes, stored_h, stored_w, TAPS_Y: tl.constexpr,
    TAPS_X: tl.constexpr, EPS: tl.constexpr, C: tl.constexpr, PT: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, T_BLOCK:
    tl.constexpr, S_BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    base, frame, y, x, inside, wanted = _tubelet(index, scored, row, rows_per_clip, T, H, W, C, PT, PH, PW)
    scale = tl.where(inside, 2.0 * tl.load(grad + row) / (C * PT * PH * PW), float("nan"))
    t = tl.arange(0, T_BLOCK)[:, None]
    s = tl.arange(0, S_BLOCK)[None, :]
    lane = (t < PT) & (s < PH * PW)
    for c in tl.static_range(C):
        target = _target(
            source, base, frame, y, x, boxes + row // rows_per_clip * 4, H, W, stored_h, stored_w, TAPS_Y, TAPS_X, EPS, c, C, PT,
            PH, PW, T_BLOCK, S_BLOCK,
        )  # fmt: skip
        place = row * (C * PT * PH * PW) + (t * (PH * PW) + s) * C + c
        p = tl.load(pred + place, mask=lane, other=0).to(tl.float32)
        d = tl.where(wanted, scale * (p - target), 0.0)
        store(grad_pred + place, d, lane)


CONFIGURATIONS = [{"num_warps": 4}, {"num_warps": 2}, {"num_warps": 8}]
THROUGH_BOXES = [{"num_warps": 8}, {"num_warps": 2}]  # with 4 the crop's weights spill on sm_86


def _grid(source: Tensor, patch: list[int], boxes: Tensor | None, size: list[int] | None) -> tuple[tuple, dict]:
    """T, H, W of the clip, a spectrogram being one frame of one channel, with its boxes; and the kernels' constants."""
    (T, H, W), channels = (source.shape[1:4], source.shape[4]) if source.ndim == 5 else ((1, *source.shape[2:]), 1)
    pt, ph, pw = patch if source.ndim == 5 else (1, *patch)
    eps = 255e-6 if source.dtype == torch.uint8 else 1e-6  # bytes are standardised as they are, 255 times as large
    blocks = {"T_BLOCK": triton.next_power_of_2(pt), "S_BLOCK": triton.next_power_of_2(ph * pw)}
    stored, (H, W) = (H, W), (H, W) if boxes is None else size
    blocks |= {"TAPS_Y": taps(boxes, stored[0], H), "TAPS_X": taps(boxes, stored[1], W)}
    return (T, H, W, source if boxes is None else boxes, *stored), {
        "EPS": eps,
        "C": channels,
        "PT": pt,
        "PH": ph,
        "PW": pw,
        **blocks,
    }


def masked_patch_loss(
    pred: Tensor, source: Tensor, index: Tensor, scored: Tensor, patch: list[int], boxes: Tensor | None = None,
    size: list[int] | None = None,
) -> Tensor:  # fmt: skip
    errors = pred.new_empty(index.shape, dtype=torch.float32)
    clip, constants = _grid(source, patch, boxes, size)
    if index.numel():
        launch(
            masked_patch_loss_kernel, (index.numel(),), CONFIGURATIONS if boxes is None else THROUGH_BOXES,
            pred, source, index, scored.view(torch.uint8), errors, index.shape[1], *clip, **constants,
        )  # fmt: skip
    return errors


def masked_patch_loss_backward(
    grad: Tensor, pred: Tensor, source: Tensor, index: Tensor, scored: Tensor, patch: list[int], boxes: Tensor | None = None,
    size: list[int] | None = None,
) -> Tensor:  # fmt: skip
    grad_pred = torch.empty_like(pred)
    clip, constants = _grid(source, patch, boxes, size)
    if index.numel():
        launch(
            masked_patch_loss_backward_kernel, (index.numel(),), CONFIGURATIONS,
            grad, pred, source, index, scored.view(torch.uint8), grad_pred, index.shape[1], *clip, **constants,
        )  # fmt: skip
    return grad_pred
