"""Gather tubelets of a uint8 clip and normalise them into the rows that a patch-embedding product reads."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from avfmae_kernels.arguments import FLOATS, check_devices, check_range, check_shape
from avfmae_kernels.crop_clips import as_read, check_boxes
from avfmae_kernels.dispatch import call, register
from avfmae_kernels.gather_patches.reference import gather_patches as reference

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


register(
    "gather_patches",
    "(Tensor video, Tensor index, int[] patch, float[] mean, float[] std, ScalarType dtype, Tensor? boxes=None, int[] size=[]) "
    "-> Tensor",
    reference,
    triton="avfmae_kernels.gather_patches.triton",
)


def gather_patches(
    video: Tensor, index: Tensor, patch: Sequence[int] = (2, 16, 16), mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD, dtype: torch.dtype = torch.float32, boxes: Tensor | None = None,
    size: Sequence[int] | None = None,
) -> Tensor:  # fmt: skip
    r"""Embedding rows of the named tubelets; the others are never read, and no float clip exists.

    With token :math:`n` at grid place :math:`(t, y, x)` and :math:`p = (p_t, p_h, p_w)` the tubelet size,

    .. math:: out_{n,\,(c,i,j,k)} = \bigl(video_{t p_t + i,\; y p_h + j,\; x p_w + k,\; c} / 255 - mean_c\bigr) / std_c

    so that ``out @ weight.flatten(1).T`` is the strided Conv3d with that weight (AVF-MAE++, data embedding of §3.1) at
    the gathered places only. No gradient flows to ``video``.

    With ``boxes`` the clip that is cut into tubelets is each stored clip's box at ``size``, as :func:`avfmae_kernels.crop_clips`
    gives it (bilinear, rounded to levels): its pixels are resampled where they are gathered, and the cropped clip never exists.

    Floor: bytes. It reads B·N·3·pt·ph·pw bytes once and writes as many numbers of ``dtype``.

    Args:
        video: (B, T, H, W, 3) uint8, RGB. T, H, W are multiples of ``patch``. Made contiguous if it is not.
        index: (B, N) int64 token indices in raster order (time, row, column).
        patch: tubelet size in frames, rows, columns.
        mean, std: per channel, of pixels scaled to 0..1.
        dtype: float32, bfloat16 or float16.
        boxes: (B, 4) float32: left, top, right, bottom of each clip's box in pixels of ``video``; None: all of it, as it is.
        size: (H, W) of the clip that the boxes show; multiples of ``patch``.

    Returns:
        (B, N, 3·pt·ph·pw) of ``dtype``.

    Raises:
        IndexError: an index is outside the clip (CPU). On a GPU such a row is NaN instead, since finding out would
            stall the device; nothing outside the clip is read.
    """
    patch, mean, std = list(patch), list(mean), list(std)
    if video.ndim != 5 or video.shape[-1] != 3 or video.dtype != torch.uint8 or not len(video):
        raise ValueError(f"video: got {video.dtype} {tuple(video.shape)}, expected torch.uint8 (B, T, H, W, 3), B at least 1")
    check_shape("index", index, (len(video), "N"), torch.int64)
    check_devices(video=video, index=index)
    seen = (video.shape[1], *check_boxes(video, boxes, size))
    if len(patch) != 3 or any(p < 1 or s % p for p, s in zip(patch, seen, strict=True)):
        raise ValueError(f"patch: got {patch}, expected three sizes that divide the clip's {tuple(seen)}")
    if len(mean) != 3 or len(std) != 3 or any(s <= 0 for s in std):
        raise ValueError(f"mean, std: got {mean}, {std}, expected three values each, std above 0")
    if dtype not in FLOATS:
        raise ValueError(f"dtype: got {dtype}, expected torch.float32, torch.bfloat16 or torch.float16")
    check_range("index", index, math.prod([s // p for s, p in zip(seen, patch, strict=True)]))
    video, boxes = as_read("gather_patches", video, boxes, seen[1:])
    return call("gather_patches", video.device, video, index.contiguous(), patch, mean, std, dtype, boxes, list(seen[1:]))
