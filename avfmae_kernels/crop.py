"""Clips seen through boxes: the argument of the ops that read clips, and the plain way to do what they fuse."""

import torch
from torch import Tensor


def _cubic(x: Tensor) -> Tensor:
    """Keys' cubic with a = -1/2, which Pillow resizes with."""
    inner, outer = (1.5 * x - 2.5) * x * x + 1, ((2.5 - 0.5 * x) * x - 4) * x + 2
    return torch.where(x < 1, inner, torch.where(x < 2, outer, 0))


FILTERS = {"bilinear": lambda x: (1 - x).clamp(min=0), "bicubic": _cubic}  # weight by distance in pixels


def check_boxes(video: Tensor, boxes: Tensor | None, size: tuple[int, int] | None) -> tuple[int, int]:
    """The (H, W) of the clip that is seen.

    Raises:
        ValueError: boxes or size have the wrong shape, dtype or device, or only one of them is given.
    """
    if boxes is None:
        if size is not None and tuple(size) != tuple(video.shape[2:4]):
            raise ValueError(f"size: got {tuple(size)} without boxes, expected None or the clip's {tuple(video.shape[2:4])}")
        return tuple(video.shape[2:4])
    if tuple(boxes.shape) != (len(video), 4) or boxes.dtype != torch.float32 or boxes.device != video.device:
        raise ValueError(
            f"boxes: got {boxes.dtype} {tuple(boxes.shape)} on {boxes.device}, expected torch.float32 {(len(video), 4)} on {video.device}"
        )
    if size is None or len(size) != 2 or min(size) < 1:
        raise ValueError(f"size: got {size}, expected (H, W) of the clip that the boxes show")
    return tuple(size)


def resample_weights(begin: Tensor, end: Tensor, stored: int, places: int, filter: str) -> Tensor:
    r"""How much of each stored pixel is in each place: (B, places, stored) float32.

    Place :math:`i` of :math:`n` lies at :math:`c = begin + (i + 1/2)\,s` with :math:`s = (end - begin)/n`, stored pixel :math:`k` at
    :math:`k + 1/2`. Its weight is the filter's at :math:`|k + 1/2 - c| / \max(1, s)`: wider where pictures shrink, so that nothing
    aliases. Weights are divided by their sum. This is Pillow's ``resize`` with a ``box``.
    """
    weight = FILTERS[filter]
    step = ((end - begin) / places)[:, None]
    centre = begin[:, None] + (torch.arange(places, device=begin.device) + 0.5) * step  # (B, places)
    distance = (torch.arange(stored, device=begin.device) + 0.5 - centre[..., None]).abs() / step.abs().clamp(min=1)[..., None]
    weights = weight(distance)
    return weights / weights.sum(-1, keepdim=True)


# Added before rounding down to a level. A little more than a half: means that lie half-way, which boxes of simple proportions give
# often, go up whatever the order in which they were added up.
ROUNDING = 0.501


def crop_clips(video: Tensor, boxes: Tensor, size: tuple[int, int], filter: str = "bilinear") -> Tensor:
    """Each clip's box at ``size``, antialiased, as two products with the filter's weights.

    Args:
        video: (B, T, H, W, 3) uint8.
        boxes: (B·V, 4) float32: left, top, right, bottom in pixels of the stored frames; V boxes a clip, one clip's together.
            A box from right to left mirrors.
        size: (H', W') of the result.
        filter: ``"bilinear"`` or ``"bicubic"``.

    Returns:
        (B·V, T, H', W', 3) uint8, rounded once.
    """
    left, top, right, bottom = boxes.unbind(-1)
    y = resample_weights(top, bottom, video.shape[2], size[0], filter)
    x = resample_weights(left, right, video.shape[3], size[1], filter)
    with torch.autocast(video.device.type, enabled=False):
        views = len(boxes) // len(video)
        frames = video.float().repeat_interleave(views, 0) if views > 1 else video.float()
        lines = torch.einsum("bxw,bthwc->bthxc", x, frames).clamp(0, 255)  # a cubic overshoots
        return torch.einsum("byh,bthxc->btyxc", y, lines).add(ROUNDING).clamp(0, 255).byte()
