"""What readers of media share: an error with the file's name, a video's clock, and memory for frames."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

SAMPLE_RATE = 16_000
LARGEST_WHOLE = 256 * 256  # pixels; of larger frames only the crop leaves the worker


class MediaError(Exception):
    """A file cannot be used; the message names it and says why."""

    def __init__(self, path: str, reason: str):
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = path, reason

    def __reduce__(self):  # crosses process borders whole
        return MediaError, (self.path, self.reason)


@contextmanager
def blaming(path: str, fault: str | Callable[[], str]) -> Iterator[None]:
    """Whatever a library raises inside is the file's fault: broken files make them raise anything, IndexError and TypeError not
    excepted."""
    try:
        yield
    except MediaError:
        raise
    except Exception as error:
        said = (getattr(error, "strerror", None) or str(error)).strip().splitlines()
        reason = f"{type(error).__name__}: {said[0][:160]}" if said else type(error).__name__
        raise MediaError(path, f"{fault if isinstance(fault, str) else fault()} ({reason})") from error


@dataclass(frozen=True)
class VideoInfo:
    """What a container says of its picture.

    Attributes:
        times: (n,) seconds, presentation time of every frame, ascending, on the file's clock.
        start: seconds on that clock at which the file's first track begins.
        fps: average frames a second.
        has_audio: whether the same file has a sound track.
        exact_seek: whether windows are reached by a seek: the container says of every packet when its frame is shown.
        keys: numbers of the frames at which decoding can begin (:func:`avfmae.data.bitstream.begins_anew`); where
            ``exact_seek`` is not given, the first.
        codec: of the picture; "" where there is none.
        open_groups: whether an H.264 key frame is there that frames coded after it look back across.
        stamped: whether a frame's number follows from its time stamp; else from its place in the order of decoding all.
    """

    times: np.ndarray
    start: float
    fps: float
    has_audio: bool
    exact_seek: bool
    keys: np.ndarray = field(default_factory=lambda: np.zeros(1, int))
    codec: str = ""
    open_groups: bool = False
    stamped: bool = True


class Arena:
    """Memory for the frames of a batch, so that windows of one size are decoded where the batch is, and not copied there.

    Args:
        count: of windows.
        empty: makes an array of uint8 of a shape.
    """

    def __init__(self, count: int, empty: Callable[[tuple[int, ...]], np.ndarray] = lambda shape: np.empty(shape, np.uint8)):
        self.count, self.empty, self.used, self.memory = count, empty, 0, None

    def place(self, shape: tuple[int, ...]) -> np.ndarray:
        """An array of uint8 for the next window; elsewhere, where that has another shape than the first had, or is large."""
        small = shape[1] * shape[2] <= LARGEST_WHOLE
        if self.memory is None and small:
            self.memory = self.empty((self.count, *shape))
        if not small or self.memory.shape[1:] != shape or self.used == self.count:
            return np.empty(shape, np.uint8)
        self.used += 1
        return self.memory[self.used - 1]

    def holds(self, windows: list[np.ndarray]) -> bool:
        """Whether these windows are all of the memory, in order."""
        return self.memory is not None and len(windows) == self.count and all(
            w.ctypes.data == m.ctypes.data for w, m in zip(windows, self.memory, strict=True)
        )  # fmt: skip
