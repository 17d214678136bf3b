"""Where a clip is cut in space and how its colours are moved: drawn by the workers, done where the clips are, a CPU or a GPU.

A *box* is (left, top, right, bottom) in pixels of the decoded frame. Shapes: T frames, H rows, W columns. Every frame of a clip
is treated alike. The operations are Pillow's, on uint8 tensors, to within a level of rounding.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

Box = tuple[float, float, float, float]


def face_box(face: Box | None, size: tuple[int, int], margin: float = 0.3) -> Box:
    """The square around a face (x, y, w, h) with ``margin`` of its side on each side, inside a frame of (H, W); or all of the
    frame."""
    height, width = size
    if face is None:
        return 0, 0, width, height
    x, y, w, h = face
    side = min(max(w, h) * (1 + 2 * margin), height, width)
    left = float(np.clip(x + w / 2 - side / 2, 0, width - side))
    top = float(np.clip(y + h / 2 - side / 2, 0, height - side))
    return left, top, left + side, top + side


def crop(frames: np.ndarray, box: Box, size: tuple[int, int], filter: str) -> np.ndarray:
    """Cuts ``box`` out of (T, H, W, 3) frames and resizes it to ``size`` (rows, columns), with Pillow: where clips of a batch
    differ in size, and cannot be cropped together on the device."""
    resample = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[filter]
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


def random_resized_box(within: Box, rng: np.random.Generator, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3)) -> Box:
    """Fine-tuning: a box of random area share and aspect ratio."""
    left, top, right, bottom = within
    width, height = right - left, bottom - top
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = np.exp(rng.uniform(*np.log(ratio)))
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
    """What training with labels does to one clip after the crop.

    Attributes:
        operations: RandAugment's, each with its strength 0..10 and its sign.
        flip: whether the clip is mirrored.
        erase: top, left and noise (T, h, w, 3) uint8 of the erased rectangle, or None.
    """

    operations: tuple[tuple[int, float, int], ...]
    flip: bool
    erase: tuple[int, int, np.ndarray] | None


def draw(
    rng: np.random.Generator, frames: int, size: tuple[int, int], rand_augment: tuple[float, int], flip: float, erase: float
) -> Draw:
    """Draws RandAugment (Cubuk et al., 2020), mirroring and random erasing (Zhong et al., 2020) for a clip of (T, H, W).

    Of RandAugment's operations, drawn with replacement, each is applied with probability ½; the strength is normal(magnitude, ½)
    within 0..10. The erased rectangle is 2 to 33 % of the frame.
    """
    magnitude, count = rand_augment
    chosen = []
    for _ in range(count):
        operation = int(rng.integers(len(OPERATIONS)))
        strength, sign, applied = float(np.clip(rng.normal(magnitude, 0.5), 0, 10)), int(rng.choice((-1, 1))), rng.random() < 0.5
        if applied:
            chosen.append((operation, strength, sign))
    return Draw(tuple(chosen), bool(rng.random() < flip), _rectangle(rng, frames, size, erase))


def _rectangle(
    rng: np.random.Generator, frames: int, size: tuple[int, int], probability: float
) -> tuple[int, int, np.ndarray] | None:
    if rng.random() >= probability:
        return None
    height, width = size
    for _ in range(10):
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
        for operation, strength, sign in drawn.operations:
            clip = OPERATIONS[operation](clip, strength / 10, sign)
        if drawn.flip:
            clip = clip.flip(2)
        if drawn.erase is not None:
            top, left, noise = drawn.erase
            clip = clip.clone()
            clip[:, top : top + noise.shape[1], left : left + noise.shape[2]] = torch.from_numpy(noise).to(clip.device)
        out.append(clip)
    return torch.stack(out)


# RandAugment's operations on a clip (T, H, W, 3) uint8, at strength m in 0..1, in the "increasing" set: each does more as m
# grows.

FILL = (124.0, 116.0, 104.0)  # what comes into view from outside the frame


def _look_up(clip: Tensor, table: Tensor) -> Tensor:
    """Replaces every level by its entry in ``table``: (256,), or (T, 3, 256) for each frame's channels."""
    if table.ndim == 1:
        return table[clip.int()]
    levels = clip.permute(0, 3, 1, 2).flatten(2).long()
    return table.gather(2, levels).unflatten(2, clip.shape[1:3]).permute(0, 2, 3, 1)


def _levels(clip: Tensor) -> Tensor:
    return torch.arange(256, device=clip.device, dtype=torch.float64)


def _histogram(clip: Tensor) -> Tensor:
    """(T, 3, 256) counts of each frame's channels."""
    levels = clip.permute(0, 3, 1, 2).flatten(2).long()
    return torch.zeros(*levels.shape[:2], 256, device=clip.device, dtype=torch.int64).scatter_add_(
        2, levels, torch.ones_like(levels)
    )


def _auto_contrast(clip: Tensor, m: float, sign: int) -> Tensor:
    low, high = (f(clip.flatten(1, 2).double(), 1) for f in (torch.amin, torch.amax))
    scale = torch.where(high > low, 255 / (high - low).clamp(min=1), 1)[..., None]
    shift = torch.where(high > low, -low, 0)[..., None] * scale
    return _look_up(clip, (_levels(clip) * scale + shift).trunc().clamp(0, 255).byte())


def _equalize(clip: Tensor, m: float, sign: int) -> Tensor:
    count = _histogram(clip)
    last = torch.where(count > 0, torch.arange(256, device=clip.device), -1).amax(-1, keepdim=True)
    step = (count.sum(-1, keepdim=True) - count.gather(2, last)) // 255
    before = count.cumsum(-1) - count
    table = ((step // 2 + before) // step.clamp(min=1)).clamp(max=255)
    return _look_up(clip, torch.where(step > 0, table, torch.arange(256, device=clip.device)).byte())


def _invert(clip: Tensor, m: float, sign: int) -> Tensor:
    return 255 - clip


def _posterize(clip: Tensor, m: float, sign: int) -> Tensor:
    return clip & (256 - 2 ** (8 - max(1, 4 - int(m * 4))))


def _solarize(clip: Tensor, m: float, sign: int) -> Tensor:
    return torch.where(clip.int() < max(0, 256 - int(m * 256)), clip, 255 - clip)


def _solarize_add(clip: Tensor, m: float, sign: int) -> Tensor:
    return torch.where(clip < 128, (clip.int() + int(m * 110)).clamp(max=255).byte(), clip)


def _grey(clip: Tensor) -> Tensor:
    """(T, H, W, 1) ITU-R 601 luma, as Pillow rounds it."""
    weights = torch.tensor([19595, 38470, 7471], device=clip.device, dtype=torch.int32)
    return ((clip.int() * weights).sum(-1, keepdim=True) + 0x8000) >> 16


def _blend(plain: Tensor, clip: Tensor, factor: float) -> Tensor:
    plain = plain.float()
    return (plain + factor * (clip.float() - plain)).clamp(0, 255).byte()


def _colour(clip: Tensor, m: float, sign: int) -> Tensor:
    return _blend(_grey(clip), clip, 1 + sign * 0.9 * m)


def _contrast(clip: Tensor, m: float, sign: int) -> Tensor:
    return _blend((_grey(clip).double().mean((1, 2, 3), keepdim=True) + 0.5).trunc(), clip, 1 + sign * 0.9 * m)


def _brightness(clip: Tensor, m: float, sign: int) -> Tensor:
    return _blend(torch.zeros_like(clip), clip, 1 + sign * 0.9 * m)


def _sharpness(clip: Tensor, m: float, sign: int) -> Tensor:
    planes = clip.permute(0, 3, 1, 2).flatten(0, 1)[:, None].float()
    kernel = torch.tensor([[1.0, 1, 1], [1, 5, 1], [1, 1, 1]], device=clip.device)[None, None] / 13
    smooth = planes.clone()  # at the edges, as it is
    smooth[:, :, 1:-1, 1:-1] = (F.conv2d(planes, kernel) + 0.5).trunc()
    return _blend(smooth[:, 0].unflatten(0, (-1, 3)).permute(0, 2, 3, 1), clip, 1 + sign * 0.9 * m)


def _affine(clip: Tensor, a: float, b: float, c: float, d: float, e: float, f: float) -> Tensor:
    """Output place (x, y) shows (a·x + b·y + c, d·x + e·y + f), places being pixels' centres; bicubic (a = -1, as Pillow
    transforms)."""
    height, width = clip.shape[1:3]
    y, x = torch.meshgrid(
        *(torch.arange(n, device=clip.device, dtype=torch.float64) + 0.5 for n in (height, width)), indexing="ij"
    )
    from_x, from_y = a * x + b * y + c, d * x + e * y + f
    inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
    columns, weights_x = _cubic_taps(from_x - 0.5, width)
    rows, weights_y = _cubic_taps(from_y - 0.5, height)
    pixels = clip.permute(0, 3, 1, 2).flatten(2).float()  # (T, 3, H·W)
    out = torch.zeros_like(pixels)
    for i in range(4):
        line = sum(
            weights_x[k] * pixels[..., (rows[i] * width + columns[k]).flatten()].unflatten(2, (height, width)) for k in range(4)
        )
        out = out + (weights_y[i] * line).flatten(2)
    out = out.unflatten(2, (height, width)).permute(0, 2, 3, 1)
    fill = torch.tensor(FILL, device=clip.device)
    return torch.where(inside[..., None], out.clamp(0, 255), fill).byte()


def _cubic_taps(place: Tensor, size: int) -> tuple[list[Tensor], list[Tensor]]:
    """The four pixels around a place, those outside replaced by the edge's, and their weights."""
    first = place.floor()
    t = (place - first).float()
    weights = [((2 - t) * t - 1) * t, (t - 2) * t * t + 1, ((1 - t) * t + 1) * t, (t - 1) * t * t]
    return [(first.long() + k).clamp(0, size - 1) for k in (-1, 0, 1, 2)], weights


def _rotate(clip: Tensor, m: float, sign: int) -> Tensor:
    angle = np.radians(-sign * 30 * m)
    cos, sin = float(np.cos(angle)), float(np.sin(angle))
    y, x = clip.shape[1] / 2, clip.shape[2] / 2
    return _affine(clip, cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y)


def _shear_x(clip: Tensor, m: float, sign: int) -> Tensor:
    return _affine(clip, 1, sign * 0.3 * m, 0, 0, 1, 0)


def _shear_y(clip: Tensor, m: float, sign: int) -> Tensor:
    return _affine(clip, 1, 0, 0, sign * 0.3 * m, 1, 0)


def _translate_x(clip: Tensor, m: float, sign: int) -> Tensor:
    return _affine(clip, 1, 0, sign * 0.45 * m * clip.shape[2], 0, 1, 0)


def _translate_y(clip: Tensor, m: float, sign: int) -> Tensor:
    return _affine(clip, 1, 0, 0, 0, 1, sign * 0.45 * m * clip.shape[1])


OPERATIONS: tuple[Callable[[Tensor, float, int], Tensor], ...] = (
    _auto_contrast, _equalize, _invert, _rotate, _posterize, _solarize, _solarize_add, _colour, _contrast,
    _brightness, _sharpness, _shear_x, _shear_y, _translate_x, _translate_y,
)  # fmt: skip
