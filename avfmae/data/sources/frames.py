"""A folder of frame images as a clip: 25 frames a second, without sound."""

import re
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from avfmae.data.sources.probing import NOMINAL_FPS
from avfmae.data.sources.source import MediaError, Source, VideoInfo, as_media_error, register
from avfmae.files import digest

IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"}


@register
class FrameFolder(Source):
    """A folder; its images are the frames, in the order of their names, in which numbers count as such. Hidden files are none."""

    def __init__(self, path: str):
        super().__init__(path)
        images = (f for f in Path(path).iterdir() if f.suffix.lower() in IMAGES and not f.name.startswith("."))
        self.files = sorted(images, key=lambda f: ([int(p) if p.isdecimal() else p for p in re.split(r"(\d+)", f.name)], f.name))

    @classmethod
    def takes(cls, path: str) -> bool:
        return Path(path).is_dir()

    @property
    def info(self) -> VideoInfo:
        if not self.files:
            raise MediaError(self.path, "the folder holds no frame images; of a folder of videos, give the videos")
        return VideoInfo(np.arange(len(self.files)) / NOMINAL_FPS, 0.0, NOMINAL_FPS, has_audio=False)

    def frames(self, numbers, arena=None):
        numbers = self.checked(numbers)
        with as_media_error(self.path, "a frame image does not decode"):
            with Image.open(self.files[0]) as first:
                self.check_size(len(numbers), *first.size)
                size = ImageOps.exif_transpose(first).size
            return np.stack([self._read(self.files[i], size) for i in numbers])

    def _read(self, file: Path, size: tuple[int, int]) -> np.ndarray:
        """The image, turned as it says, in the size of the folder's first."""
        with Image.open(file) as image:
            self.check_size(1, *image.size)
            shown = ImageOps.exif_transpose(image).convert("RGB")
        if shown.size != size:
            self.flags.add("picture-size-changes")
            shown = shown.resize(size, Image.Resampling.BILINEAR)
        return np.asarray(shown)

    def size_hint(self):
        return sum(file.stat().st_size for file in self.files)  # in bytes: few folders are equal, and only those are read

    def digest(self):
        return digest(self.files)
