"""A pixel of a cropped clip in Triton, straight from the stored frames (the maths: ``crop_clips.reference``)."""

import math

import triton
import triton.language as tl
from torch import Tensor


def taps(boxes: Tensor | None, stored: int, places: int) -> int:
    """Most stored pixels that a place of a box inside the frame can need; 0: there are no boxes."""
    return 0 if boxes is None else min(stored, math.ceil(2 * max(1, stored / places)) + 1)


@triton.jit
def _axis(begin, end, place, size, stored):
    """Centre and half width of a place's filter, and its first pixel."""
    step = (end - begin) / size
    centre = begin + (place.to(tl.float32) + 0.5) * step
    width = tl.maximum(tl.abs(step), 1.0)
    return centre, width, tl.maximum((centre - width + 0.5).to(tl.int32), 0)


@triton.jit
def cropped_pixel(
    video, box, frame, y, x, CHANNEL: tl.constexpr, lane, H, W, stored_h, stored_w, TAPS_Y: tl.constexpr, TAPS_X: tl.constexpr
):
    """One channel, 0 to 255, at places (y, x) of the H x W picture that ``box`` shows of stored frames."""
    cy, wy, top = _axis(tl.load(box + 1), tl.load(box + 3), y, H, stored_h)
    cx, wx, left = _axis(tl.load(box), tl.load(box + 2), x, W, stored_w)
    total, value = 0.0 * cx, 0.0 * cx
    for i in range(TAPS_Y):
        row = top + i
        weight_y = tl.maximum(1.0 - tl.abs(row.to(tl.float32) + 0.5 - cy) / wy, 0.0)
        for k in range(TAPS_X):
            column = left + k
            weight = weight_y * tl.maximum(1.0 - tl.abs(column.to(tl.float32) + 0.5 - cx) / wx, 0.0)
            inside = lane & (row < stored_h) & (column < stored_w)
            weight = tl.where(inside, weight, 0.0)
            place = (frame * stored_h + row) * stored_w + column
            value += weight * tl.load(video + place * 3 + CHANNEL, mask=inside, other=0).to(tl.float32)
            total += weight
    return tl.floor(value / tl.where(total > 0.0, total, 1.0) + 0.501)  # crop_clips.reference.ROUNDING
