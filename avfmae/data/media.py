"""What every reader of media says: an error with the file's name, a video's clock, and which pictures nothing depends on."""

from dataclasses import dataclass, field

import numpy as np

SAMPLE_RATE = 16_000


class MediaError(Exception):
    """A file cannot be used; the message names it and says why."""

    def __init__(self, path: str, reason: str):
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = path, reason

    def __reduce__(self):  # crosses process borders whole
        return MediaError, (self.path, self.reason)


@dataclass(frozen=True)
class VideoInfo:
    """What a container says of its picture.

    Attributes:
        times: (n,) seconds, presentation time of every frame, ascending, on the file's clock.
        start: seconds on that clock at which the file's first track begins.
        fps: average frames a second.
        has_audio: whether the same file has a sound track.
        exact_seek: whether decord's frame numbers can be trusted here.
        keys: numbers of the frames at which decoding can begin.
        codec: of the picture; "" where there is none.
    """

    times: np.ndarray
    start: float
    fps: float
    has_audio: bool
    exact_seek: bool
    keys: np.ndarray = field(default_factory=lambda: np.zeros(1, int))
    codec: str = ""


SLICE, KEY_SLICE = 1, 5


def is_disposable(packet) -> bool:
    """Whether no other frame is predicted from this one: an H.264 picture (as in mp4) whose slices have nal_ref_idc 0."""
    data = memoryview(packet)
    at = 0
    while at + 5 <= len(data):
        header = data[at + 4]
        if header & 31 in (SLICE, KEY_SLICE):
            return header >> 5 & 3 == 0
        at += 4 + int.from_bytes(data[at : at + 4], "big")
    return False
