"""A video's windows, one after the other, with the faces in them: read in one pass, in memory that does not grow with its length.

A thread decodes ahead. Of what it gives, faces are looked for in every few frames, cuts between shots are found, and the frames
of the last window are kept. A window does not cross a cut: each shot has windows of its own.
"""

import queue
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TypeVar

import cv2
import numpy as np

from avfmae.data.clip import Clip
from avfmae.data.config import DataConfig
from avfmae.data.dataset import Window, is_constant, sample_window
from avfmae.data.faces import Detector, Track, detect, link
from avfmae.data.sources import NOMINAL_FPS, Source, VideoInfo

T = TypeVar("T")
LARGEST_KEPT = 1920  # frames are scaled down to this longer side before they are kept
LOOKS = 4  # frames in which faces are looked for together; more of them would be kept meanwhile
LOST = 5  # looks in a row without a face, after which a new one there is another
CUT = 0.4  # least share of a small picture's colours that a cut changes
SUDDEN = 4  # and how many times as much as frames of the same shot
MINIATURE = (64, 36)


@dataclass
class Face(Track):
    """A face that is followed through a shot. ``number``: from 1, in the order of showing; 0 until it is first shown."""

    number: int = 0


@dataclass
class Seen:
    """A window, its frames and the faces that were seen in it.

    Attributes:
        window: frame numbers and times.
        frames: (T, H, W, 3) uint8, scaled by ``scale``; None where no picture is wanted.
        faces: each with the track of this window alone, whose frame numbers are counted from ``first``; in pixels of the frames.
        looks: how often faces were looked for; None: not at all. first, last: frame numbers, the latter's not in it.
    """

    window: Window
    frames: np.ndarray | None
    faces: list[tuple[Face, Track]]
    looks: int | None
    first: int
    last: int
    scale: float = 1.0


@dataclass(frozen=True)
class Windows:
    """Where windows lie.

    Args:
        info: of the video. clip: what of it is wanted. frames: of a window, as the model takes them. data: how they are sampled.
        step: seconds from one window's beginning to the next one's; None: half a window.
    """

    info: VideoInfo
    clip: Clip
    frames: int
    data: DataConfig
    step: float | None = None

    @cached_property
    def seconds(self) -> float:
        """Of a window."""
        return self.frames * self.data.stride / (self.info.fps if is_constant(self.info) else NOMINAL_FPS)

    def at(self, first: int, limit: int) -> Window:
        """The window that begins with frame ``first`` and ends before frame ``limit`` at the latest."""
        times, info = self.info.times, self.info
        limit = min(limit, self.end(first)) if self.data.sampling == "uniform" else limit
        end = None if limit >= len(times) else float(times[limit]) - info.start
        clip = Clip(0, self.clip.path, start=float(times[first]) - info.start, end=end)
        return sample_window(info, clip, 0.0, self.frames, self.data, spread=True)

    def end(self, first: int) -> int:
        """The frame after a window's last, or one more than there are where the video is too short for it."""
        times = self.info.times
        end = times[first] + self.seconds
        return len(times) + (times[-1] + 1.5 / self.info.fps < end) if end > times[-1] else self.number(end)

    def next(self, first: int) -> int:
        """The first frame of the window after the one that begins with ``first``."""
        return max(first + 1, self.number(self.info.times[first] + (self.step or self.seconds / 2)))

    def latest(self, low: int, limit: int) -> int:
        """The first frame of the last window before frame ``limit``, which begins at ``low`` at the earliest."""
        end = self.info.times[limit] if limit < len(self.info.times) else self.info.times[-1] + 1 / self.info.fps
        return max(low, self.number(end - self.seconds))

    def number(self, time: float) -> int:
        return int(np.searchsorted(self.info.times, time - 1e-3))


class Shot:
    """The windows of one shot, as its frames arrive."""

    def __init__(self, windows: Windows, first: int):
        self.windows, self.first, self.next, self.covered = windows, first, first, first

    def due(self, number: int, closed: bool) -> Iterator[tuple[int, int]]:
        """(first, last) frame numbers of the windows that end before frame ``number``; all of them where the shot ends there."""
        while self.next < number and (end := self.windows.end(self.next)) <= number:
            yield self.next, end
            self.covered, self.next = end, self.windows.next(self.next)
        if closed and self.covered < number:
            yield self.windows.latest(self.first, number), number


def read_windows(source: Source, windows: Windows, low: int, high: int, detector: Detector | None, every: int) -> Iterator[Seen]:
    """The windows of frames ``low`` to ``high``.

    Args:
        detector: finds the faces in every ``every``-th frame; None: none are looked for.

    Raises:
        MediaError: a frame does not decode; what came before has been given.
    """
    kept: dict[int, np.ndarray] = {}
    faces: list[Face] = []
    shot, cuts, scale = Shot(windows, low), Cuts(), 1.0

    def seen(first: int, last: int) -> Seen:
        window = windows.at(first, last)
        mine = [
            (face, Track(some)) for face in faces if (some := {n - first: f for n, f in face.faces.items() if first <= n < last})
        ]
        looks = None if detector is None else len([n for n in range(first, last) if n % every == 0])
        return Seen(window, np.stack([kept[n] for n in window.frames]), mine, looks, first, last, scale)

    for block in blocks(ahead(enumerate(source.frames_between(low, high), low)), every * LOOKS):
        scale = min(1.0, LARGEST_KEPT / max(block[0][1].shape[:2]))
        if scale < 1:
            block = [(n, cv2.resize(f, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)) for n, f in block]
        found = {}
        if detector is not None and (looked := [(n, f) for n, f in block if n % every == 0]):
            found = dict(zip([n for n, _ in looked], detect(detector, [f for _, f in looked]), strict=True))
        for number, frame in block:
            if cuts.is_new(frame):
                for first, last in shot.due(number, closed=True):
                    yield seen(first, last)
                shot, faces = Shot(windows, number), []
            kept[number] = frame
            if number in found:
                link_faces(faces, number, found[number], LOST * every)
            for first, last in shot.due(number + 1, closed=number + 1 == high):
                yield seen(first, last)
            oldest = min(shot.next, windows.latest(shot.first, number + 1))
            for old in [n for n in kept if n < oldest]:
                del kept[old]
            faces = [f for f in faces if max(f.faces) >= min(oldest, number - LOST * every)]


def link_faces(faces: list[Face], number: int, found: list, most: int) -> None:
    """Adds a frame's faces to those that are followed."""
    tracks: list[Track] = list(faces)
    link(tracks, number, found, most)
    faces += [Face(track.faces) for track in tracks[len(faces) :]]


def read_sound_windows(windows: Windows, low: int, high: int) -> Iterator[Seen]:
    """The windows of a model that does not look: nothing is decoded."""
    shot = Shot(windows, low)
    for first, last in shot.due(high, closed=True):
        yield Seen(windows.at(first, last), None, [], None, first, last)


class Cuts:
    """Tells the first frame of a shot by how many of a small picture's colours change at once."""

    def __init__(self):
        self.colours: np.ndarray | None = None
        self.usual = 0.0

    def is_new(self, frame: np.ndarray) -> bool:
        pixels = max(1, min(frame.shape[1] // MINIATURE[0], frame.shape[0] // MINIATURE[1]) // 4)  # 16 of a cell tell enough
        sparse = np.ascontiguousarray(frame[::pixels, ::pixels])
        small = np.asarray(cv2.resize(sparse, MINIATURE, interpolation=cv2.INTER_AREA), np.uint8) // 32
        # The colours of a quarter of the picture each, so that a cut between alike rooms is one too.
        quarters = (small.reshape(2, -1, 2, MINIATURE[0] // 2, 3).transpose(0, 2, 1, 3, 4).reshape(4, -1, 3)).astype(int)
        codes = (quarters[..., 0] << 6) + (quarters[..., 1] << 3) + quarters[..., 2] + 512 * np.arange(4)[:, None]
        colours = np.bincount(codes.ravel(), minlength=2048) / codes.size
        before, self.colours = self.colours, colours
        if before is None:
            return False
        change = float(np.abs(colours - before).sum() / 2)
        is_new = change > max(CUT, SUDDEN * self.usual)
        self.usual = 0.0 if is_new else 0.8 * self.usual + 0.2 * change
        return is_new


def blocks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    items = iter(items)
    while block := list(islice(items, size)):
        yield block


def ahead(items: Iterator[T], count: int = 8) -> Iterator[T]:
    """The same items, made by a thread, up to ``count`` of them ahead. It ends when they are no longer wanted."""
    waiting: queue.Queue = queue.Queue(count)
    ended = threading.Event()

    def put(entry: tuple) -> None:
        while not ended.is_set():
            try:
                waiting.put(entry, timeout=0.2)
                return
            except queue.Full:
                continue

    def make() -> None:
        try:
            for item in items:
                put((item, None, False))
                if ended.is_set():
                    return
            put((None, None, True))
        except BaseException as error:
            put((None, error, True))

    threading.Thread(target=make, daemon=True, name="decoding ahead").start()
    try:
        while True:
            item, error, last = waiting.get()
            if error is not None:
                raise error
            if last:
                return
            yield item
    finally:
        ended.set()
