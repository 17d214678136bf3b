"""A source of a kind that avfmae does not have, in one file: frames in a .npy file at 25 a second, and a tone as its sound."""

import numpy as np

from avfmae.data.config import SAMPLE_RATE
from avfmae.data.sources import Source, VideoInfo, register


@register
class NpySource(Source):
    suffixes = frozenset((".npy",))

    @classmethod
    def takes(cls, path):
        return path.endswith(".npy")

    @property
    def info(self):
        return VideoInfo(np.arange(len(np.load(self.path, mmap_mode="r"))) / 25, 0.0, 25.0, has_audio=True)

    def frames(self, numbers, arena=None):
        return np.load(self.path, mmap_mode="r")[self.checked(numbers)]

    def sound(self, start, end):
        t = np.arange(round(start * SAMPLE_RATE), round(min(end, self.info.times[-1] + 0.04) * SAMPLE_RATE)) / SAMPLE_RATE
        return (0.3 * np.sin(2 * np.pi * 440 * t)).astype(np.float32)
