"""The reconstruction loss, straight from the source: target and square error in one pass, no target tensor."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from avfmae_kernels.arguments import FLOATS, check_devices, check_range, check_shape
from avfmae_kernels.crop_clips import as_read, check_boxes
from avfmae_kernels.device import kind
from avfmae_kernels.dispatch import call, register, register_backward_op
from avfmae_kernels.masked_patch_loss import reference

ARGUMENTS = "Tensor pred, Tensor source, Tensor index, Tensor scored, int[] patch, Tensor? boxes=None, int[] size=[]"
TRITON = "avfmae_kernels.masked_patch_loss.triton"
register("masked_patch_loss", f"({ARGUMENTS}) -> Tensor", reference.masked_patch_loss, triton=TRITON)
register(
    "masked_patch_loss_backward", f"(Tensor grad, {ARGUMENTS}) -> Tensor", reference.masked_patch_loss_backward, triton=TRITON
)
register_backward_op("masked_patch_loss", 1)


def masked_patch_loss(
    pred: Tensor, source: Tensor, index: Tensor, weight: Tensor, patch: Sequence[int], boxes: Tensor | None = None,
    size: Sequence[int] | None = None,
) -> Tensor:  # fmt: skip
    r"""Weighted sum of the tokens' mean square errors against their standardised patches (AVF-MAE++ eq. 3).

    Token :math:`n`'s patch :math:`x` is standardised per channel over its :math:`S` pixels, with the unbiased variance,

    .. math:: \hat x = (x - \bar x) / (\sqrt{\mathrm{var}\,x} + 10^{-6}),

    (pixels of a uint8 source scaled to 0..1 before), and every frame of it but the first becomes its difference to the frame
    before. Then

    .. math:: loss = \sum_n w_n \frac{1}{P} \sum_p (pred_{n,p} - \hat x_{n,p})^2.

    With ``boxes`` the clip is each stored clip's box at ``size``, as :func:`avfmae_kernels.crop_clips` gives it (bilinear).
    Tokens of weight 0 are neither read nor compared. Gradient flows to ``pred`` and to ``weight``.

    Floor: bytes. Forward reads the predictions and the source's patches once; backward the same, and writes the gradient.

    Args:
        pred: (B, N, P) float32, bfloat16 or float16; P numbers in the order (time, row, column, channel).
        source: (B, T, H, W, 3) uint8, or (B, 1, frames, mels) floating point.
        index: (B, N) int64, the tokens that are predicted, in raster order of the source's grid.
        weight: (B, N) float; usually 1/count where a token is scored and 0 elsewhere.
        patch: (pt, ph, pw) of the video, or (frames, mels) of the spectrogram.
        boxes: (B, 4) float32: left, top, right, bottom of each video's box in pixels of ``source``; None: all of it, as it is.
        size: (H, W) of the clip that the boxes show.

    Returns:
        A float32 scalar.

    Raises:
        IndexError: an index of a scored token is outside the source (CPU); on a GPU the loss is NaN instead.
    """
    patch = list(patch)
    video = source.ndim == 5
    if video:
        check_shape("source", source, ("B", "T", "H", "W", 3), torch.uint8)
    else:
        check_shape("source", source, ("B", 1, "frames", "mels"), *FLOATS, torch.float64)
    if not len(source):
        raise ValueError(f"source: got {tuple(source.shape)}, expected a batch of at least 1")
    if boxes is not None and not video:
        raise ValueError("boxes: are for videos; a spectrogram has none")
    seen = (source.shape[1], *check_boxes(source, boxes, size)) if video else tuple(source.shape[2:])
    if len(patch) != len(seen) or any(p < 1 or s % p for p, s in zip(patch, seen, strict=True)):
        raise ValueError(f"patch: got {patch}, expected {len(seen)} sizes that divide the source's {seen}")
    numbers = math.prod(patch) * (3 if video else 1)
    if math.prod(patch) < 2:
        raise ValueError(f"patch: got {patch}, expected at least two pixels, or there is no variance")
    check_shape("index", index, (len(source), "N"), torch.int64)
    check_shape("pred", pred, (*index.shape, numbers), *FLOATS)
    check_shape("weight", weight, index.shape, *FLOATS, torch.float64)
    check_devices(source=source, pred=pred, index=index, weight=weight)
    scored = weight != 0
    if kind(source.device) == "cpu":
        check_range("index", torch.where(scored, index, 0), math.prod([s // p for s, p in zip(seen, patch, strict=True)]))
    if not video:
        source = source.float()
    source, boxes = as_read("masked_patch_loss", source, boxes, seen[-2:])
    errors = call(
        "masked_patch_loss", source.device, pred.contiguous(), source, index.contiguous(), scored.contiguous(), patch, boxes,
        list(seen[-2:]),
    )  # fmt: skip
    return (errors * weight).sum()
