"""RandAugment's operations as Pillow does them, one frame at a time: the measure for avfmae.data.augment."""

from PIL import Image, ImageEnhance, ImageOps


def _affine(*coefficients: float):
    return lambda image: image.transform(
        image.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC, fillcolor=(124, 116, 104)
    )


# Each takes (m of 0..10, sign, image size) and gives a function of a PIL image.
RAND_AUGMENT = {
    "auto contrast": lambda m, s, n: ImageOps.autocontrast,
    "equalize": lambda m, s, n: ImageOps.equalize,
    "invert": lambda m, s, n: ImageOps.invert,
    "rotate": lambda m, s, n: lambda image: image.rotate(s * 30 * m / 10, Image.Resampling.BICUBIC, fillcolor=(124, 116, 104)),
    "posterize": lambda m, s, n: lambda image: ImageOps.posterize(image, max(1, 4 - int(m / 10 * 4))),
    "solarize": lambda m, s, n: lambda image: ImageOps.solarize(image, max(0, 256 - int(m / 10 * 256))),
    "solarize add": lambda m, s, n: (
        lambda image: image.point([min(255, v + int(m / 10 * 110)) if v < 128 else v for v in range(256)] * 3)
    ),
    "colour": lambda m, s, n: lambda image: ImageEnhance.Color(image).enhance(1 + s * 0.9 * m / 10),
    "contrast": lambda m, s, n: lambda image: ImageEnhance.Contrast(image).enhance(1 + s * 0.9 * m / 10),
    "brightness": lambda m, s, n: lambda image: ImageEnhance.Brightness(image).enhance(1 + s * 0.9 * m / 10),
    "sharpness": lambda m, s, n: lambda image: ImageEnhance.Sharpness(image).enhance(1 + s * 0.9 * m / 10),
    "shear x": lambda m, s, n: _affine(1, s * 0.3 * m / 10, 0, 0, 1, 0),
    "shear y": lambda m, s, n: _affine(1, 0, 0, s * 0.3 * m / 10, 1, 0),
    "translate x": lambda m, s, n: _affine(1, 0, s * 0.45 * m / 10 * n[0], 0, 1, 0),
    "translate y": lambda m, s, n: _affine(1, 0, 0, 0, 1, s * 0.45 * m / 10 * n[1]),
}
