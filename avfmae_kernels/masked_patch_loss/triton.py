"""masked_patch_loss in Triton: one program a token, which reads its tubelet once and keeps the target in registers."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from avfmae_kernels.triton_tools import launch, store


@triton.jit
def masked_patch_loss_kernel(
    grad, pred, source, index, scored, result, rows_per_clip, T, H, W,
    BACKWARD: tl.constexpr, EPS: tl.constexpr, C: tl.constexpr, PT: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    T_BLOCK: tl.constexpr, S_BLOCK: tl.constexpr,
):  # fmt: skip
    """The error of a token; or, BACKWARD, the gradient to its prediction."""
    row = tl.program_id(0).to(tl.int64)
    token, wanted = tl.load(index + row), tl.load(scored + row) != 0
    columns, lines = W // PW, H // PH
    inside = (token >= 0) & (token < (T // PT) * lines * columns)
    token = tl.where(inside & wanted, token, 0)  # others are given the clip's first tubelet: nothing outside is read
    x, y, frame = token % columns * PW, token // columns % lines * PH, token // (columns * lines) * PT
    base = (((row // rows_per_clip * T + frame) * H + y) * W + x) * C

    pixels: tl.constexpr = PT * PH * PW
    t, s = tl.arange(0, T_BLOCK)[:, None], tl.arange(0, S_BLOCK)[None, :]
    lane = (t < PT) & (s < PH * PW)
    place = (t * H + s // PW) * W + s % PW
    scale = 2.0 / (C * pixels)
    if BACKWARD:
        scale = tl.where(inside, scale * tl.load(grad + row), float("nan"))
    error = 0.0
    for c in tl.static_range(C):
        value = tl.load(source + base + place * C + c, mask=lane, other=0).to(tl.float32)
        before = tl.load(source + base + (place - H * W) * C + c, mask=lane & (t > 0), other=0).to(tl.float32)
        mean = tl.sum(tl.sum(value, 1), 0) / pixels
        centred = tl.where(lane, value - mean, 0.0)
        inverse = 1.0 / (tl.sqrt(tl.sum(tl.sum(centred * centred, 1), 0) / (pixels - 1)) + EPS)
        target = tl.where(lane, (value - tl.where(t > 0, before, mean)) * inverse, 0.0)
        number = row * (C * pixels) + (t * (PH * PW) + s) * C + c
        difference = tl.load(pred + number, mask=lane, other=0).to(tl.float32) - target
        if BACKWARD:
            store(result + number, tl.where(wanted, scale * difference, 0.0), lane)
        else:
            error += tl.sum(tl.sum(difference * difference, 1), 0)
    if not BACKWARD:
        error = tl.where(inside, error / (C * pixels), float("nan"))
        tl.store(result + row, tl.where(wanted, error, 0.0))


CONFIGURATIONS = [{"num_warps": 4}, {"num_warps": 2}, {"num_warps": 8}]


def _launch(
    grad: Tensor, pred: Tensor, source: Tensor, index: Tensor, scored: Tensor, result: Tensor, patch: list[int],
    backward: bool,
) -> Tensor:  # fmt: skip
    if not index.numel():
        return result
    if source.ndim == 4:  # a spectrogram is a frame of one channel
        source, patch = source[..., None], [1, *patch]
    (T, H, W, C), (pt, ph, pw) = source.shape[1:], patch
    launch(
        masked_patch_loss_kernel, (index.numel(),), CONFIGURATIONS,
        grad, pred, source, index, scored.view(torch.uint8), result, index.shape[1], T, H, W, BACKWARD=backward,
        EPS=255e-6 if source.dtype == torch.uint8 else 1e-6,  # bytes are standardised as they are, 255 times as large
        C=C, PT=pt, PH=ph, PW=pw, T_BLOCK=triton.next_power_of_2(pt), S_BLOCK=triton.next_power_of_2(ph * pw),
    )  # fmt: skip
    return result


def masked_patch_loss(
    pred: Tensor, source: Tensor, index: Tensor, scored: Tensor, patch: list[int], boxes: Tensor | None = None,
    size: list[int] | None = None,
) -> Tensor:  # fmt: skip
    errors = pred.new_empty(index.shape, dtype=torch.float32)
    return _launch(errors, pred, source, index, scored, errors, patch, backward=False)


def masked_patch_loss_backward(
    grad: Tensor, pred: Tensor, source: Tensor, index: Tensor, scored: Tensor, patch: list[int], boxes: Tensor | None = None,
    size: list[int] | None = None,
) -> Tensor:  # fmt: skip
    return _launch(grad, pred, source, index, scored, torch.empty_like(pred), patch, backward=True)
