"""Where a clip is cut in space and how its colours are moved: drawn by the workers, done where the clips are, a CPU or a GPU.

A *box* is (left, top, right, bottom) in pixels of the decoded frame. Shapes: T frames, H rows, W columns. Every frame of a clip
is treated alike. The operations are Pillow's, on uint8 tensors, to within a level of rounding.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

Box = tuple[float, float, float, float]


def face_box(face: Box | None, size: tuple[int, int], margin: float = 0.3) -> Box:
    """The square around a face (x, y, w, h), wider by ``margin`` of its side on each side, in a frame of (H, W), or all of it."""
    height, width = size
    if face is None:
        return 0, 0, width, height
    x, y, w, h = face
    side = min(max(w, h) * (1 + 2 * margin), height, width)
    left = float(np.clip(x + w / 2 - side / 2, 0, width - side))
    top = float(np.clip(y + h / 2 - side / 2, 0, height - side))
    return left, top, left + side, top + side


def crop(frames: np.ndarray, box: Box, size: tuple[int, int], filter: str) -> np.ndarray:
    """``box`` of (T, H, W, 3) frames in ``size`` (rows, columns), by Pillow: clips of several sizes are not cropped together."""
    resample = Image.Resampling[filter.upper()]
    return np.stack([np.asarray(Image.fromarray(f).resize(size[::-1], resample, box=box)) for f in frames])


def multi_scale_box(within: Box, rng: np.random.Generator, scales=(1.0, 0.875, 0.75, 0.66)) -> Box:
    """Pre-training: a corner or centre crop at scales of the short side, aspect distorted by at most one scale step."""
    left, top, right, bottom = within
    width, height = right - left, bottom - top
    short = min(width, height)
    pairs = [(a, b) for i, a in enumerate(scales) for j, b in enumerate(scales) if abs(i - j) <= 1]
    scale_w, scale_h = pairs[rng.integers(len(pairs))]
    w, h = short * scale_w, short * scale_h
    step_x, step_y = (width - w) / 4, (height - h) / 4
    x, y = POSITIONS[rng.integers(len(POSITIONS))]
    return left + x * step_x, top + y * step_y, left + x * step_x + w, top + y * step_y + h


# Thirteen fixed positions in quarters of the free room: corners, centre, edge middles, and the quarters between.
POSITIONS = ((0, 0), (4, 0), (0, 4), (4, 4), (2, 2), (0, 2), (4, 2), (2, 4), (2, 0), (1, 1), (3, 1), (1, 3), (3, 3))


def random_resized_box(within: Box, rng: np.random.Generator, scale=(0.08, 1.0)) -> Box:
    """Fine-tuning: a box of random area share and aspect ratio."""
    left, top, right, bottom = within
    width, height = right - left, bottom - top
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = np.exp(rng.uniform(*np.log([3 / 4, 4 / 3])))
        w, h = np.sqrt(area * aspect), np.sqrt(area / aspect)
        if w <= width and h <= height:
            x, y = left + rng.uniform(0, width - w), top + rng.uniform(0, height - h)
            return float(x), float(y), float(x + w), float(y + h)
    side = min(width, height)
    x, y = left + (width - side) / 2, top + (height - side) / 2
    return x, y, x + side, y + side


def view_box(within: Box, view: int, views: int) -> Box:
    """Evaluation: the ``view``-th of ``views`` squares of the short side, spread evenly along the long one."""
    left, top, right, bottom = within
    width, height = right - left, bottom - top
    side = min(width, height)
    share = 0.5 if views == 1 else view / (views - 1)
    x, y = left + share * (width - side), top + share * (height - side)
    return x, y, x + side, y + side


@dataclass(frozen=True)
class Draw:
    """What training with labels does to one clip after the crop."""

    operations: tuple[tuple[str, float, int], ...]  # RandAugment's by name, each with its strength 0..1 and its sign
    flip: bool
    erase: tuple[int, int, np.ndarray] | None  # top, left and noise (T, h, w, 3) uint8 of the erased rectangle


def draw(
    rng: np.random.Generator, frames: int, size: tuple[int, int], rand_augment: tuple[float, int], flip: float, erase: float
) -> Draw:
    """Draws RandAugment (Cubuk et al., 2020), mirroring and random erasing (Zhong et al., 2020) for a clip of (T, H, W).

    Of RandAugment's operations, drawn with replacement, each is applied with probability ½; the strength is normal(magnitude, ½)
    within 0..10. The erased rectangle is 2 to 33 % of the frame.
    """
    magnitude, count = rand_augment
    names, chosen = list(OPERATIONS), []
    for _ in range(count):
        name = names[rng.integers(len(names))]
        strength, sign = float(np.clip(rng.normal(magnitude, 0.5), 0, 10)) / 10, int(rng.choice((-1, 1)))
        if rng.random() < 0.5:
            chosen.append((name, strength, sign))
    return Draw(tuple(chosen), bool(rng.random() < flip), _rectangle(rng, frames, size, erase))


def _rectangle(rng: np.random.Generator, frames: int, size: tuple[int, int], share: float) -> tuple[int, int, np.ndarray] | None:
    height, width = size
    for _ in range(10 if rng.random() < share else 0):
        area = height * width * rng.uniform(0.02, 1 / 3)
        aspect = np.exp(rng.uniform(np.log(0.3), -np.log(0.3)))
        h, w = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        if 0 < h < height and 0 < w < width:
            top, left = int(rng.integers(height - h)), int(rng.integers(width - w))
            # what standard normal noise is before normalisation by the ImageNet constants
            noise = rng.standard_normal((frames, h, w, 3), np.float32) * (58.4, 57.1, 57.4) + (123.7, 116.3, 103.5)
            return top, left, noise.clip(0, 255).astype(np.uint8)
    return None


def apply(video: Tensor, draws: list[Draw]) -> Tensor:
    """(B, T, H, W, 3) uint8 clips with what was drawn for each done to it."""
    out = []
    for clip, drawn in zip(video, draws, strict=True):
        for name, strength, sign in drawn.operations:
            clip = OPERATIONS[name](clip, strength, sign * strength)
        if drawn.flip:
            clip = clip.flip(2)
        if drawn.erase is not None:
            top, left, noise = drawn.erase
            clip = clip.clone()
            clip[:, top : top + noise.shape[1], left : left + noise.shape[2]] = torch.from_numpy(noise).to(clip.device)
        out.append(clip)
    return torch.stack(out)


FILL = (124.0, 116.0, 104.0)  # what comes into view from outside the frame


def _channels(clip: Tensor) -> Tensor:
    """(T, H, W, 3) -> (T, 3, H·W)."""
    return clip.permute(0, 3, 1, 2).flatten(2)


def _look_up(clip: Tensor, table: Tensor) -> Tensor:
    """Replaces every level by its entry in ``table``: (T, 3, 256), of each frame's channels."""
    levels = table.clamp(0, 255).byte().gather(2, _channels(clip).long())
    return levels.unflatten(2, clip.shape[1:3]).permute(0, 2, 3, 1)


def _auto_contrast(clip: Tensor) -> Tensor:
    low, high = _channels(clip).double().aminmax(dim=2, keepdim=True)
    scale = torch.where(high > low, 255 / (high - low).clamp(min=1), 1)
    return _look_up(clip, torch.arange(256, device=clip.device) * scale - torch.where(high > low, low, 0) * scale)


def _equalize(clip: Tensor) -> Tensor:
    channels, levels = _channels(clip).long(), torch.arange(256, device=clip.device)
    count = levels.new_zeros(*channels.shape[:2], 256).scatter_add_(2, channels, torch.ones_like(channels))
    last = torch.where(count > 0, levels, -1).amax(-1, keepdim=True)
    step = (count.sum(-1, keepdim=True) - count.gather(2, last)) // 255
    before = count.cumsum(-1) - count
    return _look_up(clip, torch.where(step > 0, (step // 2 + before) // step.clamp(min=1), levels))


def _grey(clip: Tensor) -> Tensor:
    """(T, H, W, 1) ITU-R 601 luma, as Pillow rounds it."""
    weights = torch.tensor([19595, 38470, 7471], device=clip.device, dtype=torch.int32)
    return ((clip.int() * weights).sum(-1, keepdim=True) + 0x8000) >> 16


def _mean_grey(clip: Tensor) -> Tensor:
    return (_grey(clip).double().mean((1, 2, 3), keepdim=True) + 0.5).trunc()


def _smooth(clip: Tensor) -> Tensor:
    planes = clip.permute(0, 3, 1, 2).flatten(0, 1)[:, None].float()
    kernel = torch.tensor([[1.0, 1, 1], [1, 5, 1], [1, 1, 1]], device=clip.device)[None, None] / 13
    planes[:, :, 1:-1, 1:-1] = (F.conv2d(planes, kernel) + 0.5).trunc()  # the edges stay as they are
    return planes[:, 0].unflatten(0, (-1, 3)).permute(0, 2, 3, 1)


def _enhance(plain: Tensor, clip: Tensor, s: float) -> Tensor:
    """Away from ``plain``, or towards it where ``s`` is negative."""
    plain = plain.float()
    return (plain + (1 + 0.9 * s) * (clip.float() - plain)).clamp(0, 255).byte()


def _affine(clip: Tensor, a: float, b: float, c: float, d: float, e: float, f: float) -> Tensor:
    """Output place (x, y) shows (a·x + b·y + c, d·x + e·y + f), places being pixels' centres; bicubic as Pillow's (a = -1)."""
    height, width = clip.shape[1:3]
    centres = [torch.arange(n, device=clip.device, dtype=torch.float64) + 0.5 for n in (height, width)]
    y, x = torch.meshgrid(*centres, indexing="ij")
    from_x, from_y = a * x + b * y + c, d * x + e * y + f
    inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
    columns, weights_x = _cubic_taps(from_x - 0.5, width)
    rows, weights_y = _cubic_taps(from_y - 0.5, height)
    pixels = _channels(clip).float().unflatten(2, (height, width))
    out = torch.zeros_like(pixels)
    for row, weight in zip(rows, weights_y, strict=True):
        out += weight * sum(w * pixels[..., row, column] for column, w in zip(columns, weights_x, strict=True))
    fill = torch.tensor(FILL, device=clip.device)
    return torch.where(inside[..., None], out.permute(0, 2, 3, 1).clamp(0, 255), fill).byte()


def _cubic_taps(place: Tensor, size: int) -> tuple[list[Tensor], list[Tensor]]:
    """The four pixels around a place, those outside replaced by the edge's, and their weights."""
    first = place.floor()
    t = (place - first).float()
    weights = [((2 - t) * t - 1) * t, (t - 2) * t * t + 1, ((1 - t) * t + 1) * t, (t - 1) * t * t]
    return [(first.long() + k).clamp(0, size - 1) for k in (-1, 0, 1, 2)], weights


def _rotate(clip: Tensor, s: float) -> Tensor:
    cos, sin = math.cos(math.radians(-30 * s)), math.sin(math.radians(-30 * s))
    y, x = clip.shape[1] / 2, clip.shape[2] / 2
    return _affine(clip, cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y)


# RandAugment's operations on a clip (T, H, W, 3) uint8, in the "increasing" set: each does more as the strength m in 0..1
# grows. s: m with the sign that was drawn.
OPERATIONS: dict[str, Callable[[Tensor, float, float], Tensor]] = {
    "auto contrast": lambda clip, m, s: _auto_contrast(clip),
    "equalize": lambda clip, m, s: _equalize(clip),
    "invert": lambda clip, m, s: 255 - clip,
    "rotate": lambda clip, m, s: _rotate(clip, s),
    "posterize": lambda clip, m, s: clip & (256 - 2 ** (8 - max(1, 4 - int(m * 4)))),
    "solarize": lambda clip, m, s: torch.where(clip.int() < max(0, 256 - int(m * 256)), clip, 255 - clip),
    "solarize add": lambda clip, m, s: torch.where(clip < 128, (clip.int() + int(m * 110)).clamp(max=255).byte(), clip),
    "colour": lambda clip, m, s: _enhance(_grey(clip), clip, s),
    "contrast": lambda clip, m, s: _enhance(_mean_grey(clip), clip, s),
    "brightness": lambda clip, m, s: _enhance(torch.zeros_like(clip), clip, s),
    "sharpness": lambda clip, m, s: _enhance(_smooth(clip), clip, s),
    "shear x": lambda clip, m, s: _affine(clip, 1, 0.3 * s, 0, 0, 1, 0),
    "shear y": lambda clip, m, s: _affine(clip, 1, 0, 0, 0.3 * s, 1, 0),
    "translate x": lambda clip, m, s: _affine(clip, 1, 0, 0.45 * s * clip.shape[2], 0, 1, 0),
    "translate y": lambda clip, m, s: _affine(clip, 1, 0, 0, 0, 1, 0.45 * s * clip.shape[1]),
}
