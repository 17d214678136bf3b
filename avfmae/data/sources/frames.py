"""A folder of frame images as a clip: 25 frames a second, without sound."""

from pathlib import Path

import numpy as np
from PIL import Image

from avfmae.data.sources.probing import NOMINAL_FPS
from avfmae.data.sources.source import MediaError, Source, VideoInfo, as_media_error, register
from avfmae.files import digest

IMAGES = {".png", ".jpg", ".jpeg", ".bmp"}


@register
class FrameFolder(Source):
    """A folder; its images, in the order of their names, are the frames."""

    def __init__(self, path: str):
        super().__init__(path)
        self.files = sorted(f for f in Path(path).iterdir() if f.suffix.lower() in IMAGES)

    @classmethod
    def takes(cls, path: str) -> bool:
        return Path(path).is_dir()

    @property
    def info(self) -> VideoInfo:
        if not self.files:
            raise MediaError(self.path, "the folder holds no frame images")
        return VideoInfo(np.arange(len(self.files)) / NOMINAL_FPS, 0.0, NOMINAL_FPS, has_audio=False)

    def frames(self, numbers, arena=None):
        with as_media_error(self.path, "a frame image does not decode"):
            return np.stack([np.asarray(Image.open(self.files[i]).convert("RGB")) for i in self.checked(numbers)])

    def size_hint(self):
        return len(self.files)

    def digest(self):
        return digest(self.files)
