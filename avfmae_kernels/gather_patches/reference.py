"""gather_patches in PyTorch: oracle, fallback, documentation."""

import torch
from einops import rearrange
from torch import Tensor

from avfmae_kernels.crop_clips.reference import crop_clips


def gather_patches(
    video: Tensor, index: Tensor, patch: list[int], mean: list[float], std: list[float], dtype: torch.dtype,
    boxes: Tensor | None = None, size: list[int] | None = None,
) -> Tensor:  # fmt: skip
    if boxes is not None:
        video = crop_clips(video, boxes, size)
    pt, ph, pw = patch
    rows = rearrange(video, "b (t pt) (h ph) (w pw) c -> b (t h w) c (pt ph pw)", pt=pt, ph=ph, pw=pw)
    outside = (index < 0) | (index >= rows.shape[1])
    rows = rows[torch.arange(len(rows), device=rows.device)[:, None], index.masked_fill(outside, 0)]  # (B, N, 3, P)
    mean, std = (torch.tensor(v, device=video.device)[:, None] for v in (mean, std))
    rows = (rows / 255 - mean) / std
    return rows.flatten(2).masked_fill(outside[..., None], torch.nan).to(dtype)
