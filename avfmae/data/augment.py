"""Where a clip is cut in space and how its colours are moved. Frames stay uint8; every frame of a clip is treated alike.

A *box* is (left, top, right, bottom) in pixels of the decoded frame. Shapes: T frames, H rows, W columns.
"""

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

Box = tuple[float, float, float, float]


def face_box(face: Box | None, size: tuple[int, int], margin: float = 0.3) -> Box:
    """The square around a face (x, y, w, h) with ``margin`` of its side on each side, inside a frame of (H, W); or all of the frame."""
    height, width = size
    if face is None:
        return 0, 0, width, height
    x, y, w, h = face
    side = min(max(w, h) * (1 + 2 * margin), height, width)
    left = float(np.clip(x + w / 2 - side / 2, 0, width - side))
    top = float(np.clip(y + h / 2 - side / 2, 0, height - side))
    return left, top, left + side, top + side


def crop(frames: np.ndarray, box: Box, size: tuple[int, int], resample: Image.Resampling) -> np.ndarray:
    """Cuts ``box`` out of (T, H, W, 3) frames and resizes it to ``size`` (rows, columns)."""
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


def _affine(*coefficients: float):
    return lambda image: image.transform(
        image.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC, fillcolor=(124, 116, 104)
    )


# RandAugment's operations at strength m of 0..10, in the "increasing" set: every one does more as m grows.
# Each takes (m, sign, image size) and gives a function of a PIL image.
RAND_AUGMENT = (
    lambda m, s, n: ImageOps.autocontrast,
    lambda m, s, n: ImageOps.equalize,
    lambda m, s, n: ImageOps.invert,
    lambda m, s, n: lambda image: image.rotate(s * 30 * m / 10, Image.Resampling.BICUBIC, fillcolor=(124, 116, 104)),
    lambda m, s, n: lambda image: ImageOps.posterize(image, max(1, 4 - int(m / 10 * 4))),
    lambda m, s, n: lambda image: ImageOps.solarize(image, max(0, 256 - int(m / 10 * 256))),
    lambda m, s, n: (
        lambda image: image.point([min(255, v + int(m / 10 * 110)) if v < 128 else v for v in range(256)] * 3)
    ),
    lambda m, s, n: lambda image: ImageEnhance.Color(image).enhance(1 + s * 0.9 * m / 10),
    lambda m, s, n: lambda image: ImageEnhance.Contrast(image).enhance(1 + s * 0.9 * m / 10),
    lambda m, s, n: lambda image: ImageEnhance.Brightness(image).enhance(1 + s * 0.9 * m / 10),
    lambda m, s, n: lambda image: ImageEnhance.Sharpness(image).enhance(1 + s * 0.9 * m / 10),
    lambda m, s, n: _affine(1, s * 0.3 * m / 10, 0, 0, 1, 0),
    lambda m, s, n: _affine(1, 0, 0, s * 0.3 * m / 10, 1, 0),
    lambda m, s, n: _affine(1, 0, s * 0.45 * m / 10 * n[0], 0, 1, 0),
    lambda m, s, n: _affine(1, 0, 0, 0, 1, s * 0.45 * m / 10 * n[1]),
)


def rand_augment(
    frames: np.ndarray, rng: np.random.Generator, magnitude: float = 7, operations: int = 4, spread: float = 0.5
) -> np.ndarray:
    """RandAugment (Cubuk et al., 2020): operations drawn with replacement, each applied with probability ½.

    The strength of each is normal(magnitude, spread), within 0..10. All frames get the same operations.
    """
    images = [Image.fromarray(f) for f in frames]
    for _ in range(operations):
        make = RAND_AUGMENT[rng.integers(len(RAND_AUGMENT))]
        m, sign, applied = float(np.clip(rng.normal(magnitude, spread), 0, 10)), rng.choice((-1, 1)), rng.random() < 0.5
        if applied:
            operation = make(m, sign, images[0].size)
            images = [operation(image) for image in images]
    return np.stack([np.asarray(image) for image in images])


def random_erase(frames: np.ndarray, rng: np.random.Generator, probability: float = 0.25) -> np.ndarray:
    """Random erasing (Zhong et al., 2020): one rectangle of 2–33 % of the frame becomes noise, the same place in all frames."""
    if rng.random() >= probability:
        return frames
    _, height, width, _ = frames.shape
    for _ in range(10):
        area = height * width * rng.uniform(0.02, 1 / 3)
        aspect = np.exp(rng.uniform(np.log(0.3), -np.log(0.3)))
        h, w = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        if 0 < h < height and 0 < w < width:
            y, x = rng.integers(height - h), rng.integers(width - w)
            frames = frames.copy()
            # what standard normal noise is before normalisation by the ImageNet constants
            noise = rng.normal((123.7, 116.3, 103.5), (58.4, 57.1, 57.4), (len(frames), h, w, 3))
            frames[:, y : y + h, x : x + w] = noise.clip(0, 255).astype(np.uint8)
            return frames
    return frames
