"""crop_clips in PyTorch: oracle, fallback, documentation; and what a GPU runs, where two products are quick."""

import torch
from torch import Tensor


def _cubic(x: Tensor) -> Tensor:
    """Keys' cubic with a = -1/2, which Pillow resizes with."""
    inner, outer = (1.5 * x - 2.5) * x * x + 1, ((2.5 - 0.5 * x) * x - 4) * x + 2
    return torch.where(x < 1, inner, torch.where(x < 2, outer, 0))


FILTERS = {"bilinear": lambda x: (1 - x).clamp(min=0), "bicubic": _cubic}  # weight by distance in pixels


def resample_weights(begin: Tensor, end: Tensor, stored: int, places: int, filter: str) -> Tensor:
    """How much of each stored pixel is in each place, (B, places, stored) float32; filters are wider where pictures shrink."""
    step = ((end - begin) / places)[:, None]
    centre = begin[:, None] + (torch.arange(places, device=begin.device) + 0.5) * step  # (B, places)
    distance = (torch.arange(stored, device=begin.device) + 0.5 - centre[..., None]).abs() / step.abs().clamp(min=1)[..., None]
    weights = FILTERS[filter](distance)
    return weights / weights.sum(-1, keepdim=True)


# Added before rounding down to a level. A little more than a half: means that lie half-way, which boxes of simple proportions
# give often, go up whatever the order in which they were added up.
ROUNDING = 0.501


def crop_clips(video: Tensor, boxes: Tensor, size: list[int], bicubic: bool = False) -> Tensor:
    """As two products with the filter's weights: rows first, as Pillow does."""
    left, top, right, bottom = boxes.unbind(-1)
    filter = "bicubic" if bicubic else "bilinear"
    y = resample_weights(top, bottom, video.shape[2], size[0], filter)[:, None, None]
    x = resample_weights(left, right, video.shape[3], size[1], filter)[:, None, None]
    planes = video.repeat_interleave(len(boxes) // len(video), 0).permute(0, 1, 4, 2, 3).float()  # (B, T, 3, H, W)
    lines = (planes @ x.mT).clamp(0, 255)  # a cubic overshoots
    return (y @ lines).add(ROUNDING).clamp(0, 255).byte().permute(0, 1, 3, 4, 2).contiguous()
