"""The interface of a source of clips, what it says of its video, and the error that names a file."""

import errno
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from avfmae.data.arena import Arena
from avfmae.data.config import Preparation
from avfmae.files import printable

SYSTEM = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC}
LARGEST_FRAME = 40_000_000  # pixels
LARGEST_CLIP = 2_000_000_000  # bytes of the frames that are read at once


class MediaError(RuntimeError):
    """A file cannot be used; the message names it and says why."""

    def __init__(self, path: str, reason: str):
        super().__init__(printable(f"{path}: {reason}"))
        self.path, self.reason = path, reason

    def __reduce__(self):  # so that other processes get both arguments
        return MediaError, (self.path, self.reason)


def is_system_fault(error: BaseException) -> bool:
    """Whether an error is the machine's: no memory, too many open files, no space; and no file's. FFmpeg's lack of memory is a
    file's: damaged ones claim sizes that are not there."""
    if type(error).__module__.startswith("av."):
        return getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE)
    return isinstance(error, MemoryError) or getattr(error, "errno", None) in SYSTEM


@contextmanager
def as_media_error(path: str, fault: str | Callable[[], str]) -> Iterator[None]:
    """Turns whatever a library raises inside into a MediaError: broken files make libraries raise anything, IndexError too.

    What is the machine's fault (:func:`is_system_fault`) stays as it is.
    """
    try:
        yield
    except MediaError:
        raise
    except Exception as error:
        if is_system_fault(error):
            raise
        said = (getattr(error, "strerror", None) or str(error)).strip().splitlines()
        reason = f"{type(error).__name__}: {said[0][:160]}" if said else type(error).__name__
        raise MediaError(path, f"{fault if isinstance(fault, str) else fault()} ({reason})") from error


@dataclass(frozen=True)
class VideoInfo:
    """What a source says of its video.

    Attributes:
        times: (n,) seconds at which each frame is shown, in the order of showing, on the file's clock.
        start: seconds on that clock at which the file's first track begins.
        fps: average frames a second.
        has_audio: whether there is a sound track.
        has_video: False for sound alone, whose ``times`` are those that a video of 25 frames a second would have.
    """

    times: np.ndarray
    start: float
    fps: float
    has_audio: bool
    has_video: bool = True


class Source(ABC):
    """One clip's frames and sound, on one clock. Everything but ``frames`` and ``info`` has a default.

    Attributes:
        path: of the clip. sound_path: of the file that its sound is read from.
        suffixes: of the files of a folder that are clips of this kind.
        sound_track: which of several is read: a language (``"eng"``) or a number from 0; None: the default one.
        flags: what is odd about the file, as far as it was met in reading; the file was read as a player plays it.
        is_cropped: the frames are cut to the face already.
        stored: the row of a prepared set's manifest; None for other sources.
        preparation: how a prepared set cut out its faces; None for other sources.
    """

    suffixes: frozenset[str] = frozenset()
    is_cropped: bool = False
    stored: dict | None = None
    preparation: Preparation | None = None
    sound_track: str | None = None

    def __init__(self, path: str):
        self.path = self.sound_path = path
        self.flags: set[str] = set()

    @classmethod
    def takes(cls, path: str) -> bool:
        """Whether a path is of this kind. Called for every clip of a list, so it must be quick."""
        return False

    @classmethod
    def open(cls, path: str) -> "Source":
        """The source at a path."""
        return cls(path)

    @classmethod
    def shard(cls, path: str) -> str | None:
        """The name of the shard that a path lies in, whose clips are best read together; None: in no shard.

        It is asked of one path of each folder, whose other clips lie in the same shard.
        """
        return None

    @property
    @abstractmethod
    def info(self) -> VideoInfo:
        """The times of all frames, and what else is known without decoding.

        Raises:
            MediaError: the file is missing, empty, truncated or no media file.
        """

    @abstractmethod
    def frames(self, numbers: Sequence[int] | np.ndarray, arena: Arena | None = None) -> np.ndarray:
        """Frames by number, in presentation order.

        Args:
            numbers: ascending frame numbers; repeats are allowed.
            arena: memory that the frames may lie in.

        Returns:
            (len(numbers), H, W, 3) uint8, RGB.

        Raises:
            MediaError: a frame does not decode, or there is no video.
            ValueError: there is no such frame.
        """

    def sound(self, start: float, end: float) -> np.ndarray:
        """The sound between two times of the clock of ``info.times``, as 16 kHz mono.

        Where the track has gaps, or begins inside the window, there is silence; nothing is appended after its last sample.

        Returns:
            (samples,) float32 in -1..1, at most (end - start)·16000 long; none where the track does not reach into the window.

        Raises:
            MediaError: there is no sound track, it does not decode, or it holds samples that are no numbers.
        """
        raise MediaError(self.path, "has no audio track")

    def frames_between(self, low: int, high: int) -> Iterator[np.ndarray]:
        """The frames from number ``low`` up to ``high``, one after the other, each (H, W, 3) uint8 RGB.

        Raises:
            MediaError: one of them does not decode.
        """
        return (self.frames([number])[0] for number in range(low, high))

    def damaged(self) -> list[str]:
        """Which of ``"video"`` and ``"sound"`` are not the bytes that were stored, where sums of these are kept."""
        return []

    def size_hint(self) -> int | None:
        """A number that copies of one original file share and that is quick to tell, as its size in bytes; None: not known."""
        return None

    def digest(self) -> str | None:
        """SHA-256 of the file that the clip was made of; None where there is no such file."""
        return None

    def check_size(self, frames: int, width: int, height: int) -> None:
        """Refuses frames that would take too much memory.

        Raises:
            MediaError: they would.
        """
        if width * height > LARGEST_FRAME or 3 * frames * width * height > LARGEST_CLIP:
            limits = f"{LARGEST_FRAME // 10**6} million pixels a frame, {LARGEST_CLIP // 10**9} GB a clip"
            raise MediaError(self.path, f"{frames} frames of {width} x {height} pixels are more than is read ({limits})")

    def check_serves(self, modalities: Sequence[str]) -> None:
        """Refuses a clip of which a model would see nothing, or, where it sees nothing, hear nothing.

        Raises:
            MediaError: there is no such track.
        """
        if "video" in modalities and not self.info.has_video:
            raise MediaError(self.path, "has no picture, which the model needs")
        if "video" not in modalities and not self.info.has_audio:
            raise MediaError(self.path, "has no sound, which is all that the model takes")

    def checked(self, numbers: Sequence[int] | np.ndarray) -> np.ndarray:
        """The frame numbers as an array.

        Raises:
            ValueError: there are none, or one is out of range.
        """
        numbers, count = np.asarray(numbers), len(self.info.times)
        if len(numbers) == 0 or numbers.min() < 0 or numbers.max() >= count:
            raise ValueError(f"numbers: got {numbers.tolist()}, expected frame numbers from 0 to {count - 1} of {self.path}")
        return numbers


S = TypeVar("S", bound=Source)
KINDS: list[type[Source]] = []  # registered ones, the latest first


def register(kind: type[S]) -> type[S]:
    """Class decorator: :func:`avfmae.data.sources.open_clip` asks this kind before those that were registered earlier."""
    KINDS.insert(0, kind)
    return kind
