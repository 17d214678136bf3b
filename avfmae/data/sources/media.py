"""A media file as a clip: PyAV decodes it.

A frame's number is its place in the order of showing. Time stamps give it or, where they are not those of showing (AVI), the
order in which frames come when all of the file is decoded. A window is decoded from the last key frame before it at which
decoding may begin, and H.264's frames that are neither wanted nor needed by others are left out. Either way a frame is bit for
bit what decoding the whole file gives.

decord is there for those who ask for it, and reads only what it reads rightly (``DECORD_EXACT``): where frames are shown before
the key frame that they are coded after, it gives wrong ones without an error.
"""

import os
from collections.abc import Iterator

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from avfmae.data.arena import Arena
from avfmae.data.sources.bitstream import is_disposable, length_size
from avfmae.data.sources.probing import open_media, probe
from avfmae.data.sources.sound import read_sound
from avfmae.data.sources.source import MediaError, Source, VideoInfo, as_media_error
from avfmae.extras import need
from avfmae.files import digest

DECORD_EXACT = {"h264", "vp8", "vp9", "av1", "mjpeg", "prores", "ffv1", "flv1"}
"""Codecs of which decord gives the right frames, in ``SEEKABLE`` containers, H.264 without open groups."""
BACKENDS = ("auto", "pyav", "decord")


class MediaFile(Source):
    """A file that PyAV opens, with video, sound or both; what no other source takes."""

    suffixes = frozenset(
        (".mp4", ".mkv", ".webm", ".flv", ".mov", ".avi", ".mpg", ".mpeg", ".m4v", ".wmv", ".3gp", ".ts", ".ogv")
    )

    @property
    def info(self) -> VideoInfo:
        return probe(self.path)

    def frames(self, numbers, arena=None, backend: str = "auto"):
        """As the interface says.

        Args:
            backend: ``"pyav"``; ``"decord"``, for streams of which it gives the right frames; or ``"auto"``, which is PyAV: it
                gives the right frames of all, and decord gains nothing.
        """
        if backend not in BACKENDS:
            raise ValueError(f"backend: got {backend!r}, expected one of {', '.join(map(repr, BACKENDS))}")
        self.check_video()
        read = self._read_decord if backend == "decord" else self._read_pyav
        return read(self.checked(numbers), arena)

    def sound(self, start, end):
        return read_sound(self.path, start, end)

    def frames_between(self, low, high):
        self.check_video()
        expected, shape = low, None
        for number, frame in _decoded_frames(self.path, self.info, 0, None):
            if number < expected:
                continue
            if number > expected or number >= high:
                break
            if shape not in (None, frame.shape):
                raise MediaError(self.path, "changes its frame size on the way")
            shape, expected = frame.shape, expected + 1
            yield frame
            if expected == high:
                return
        if expected < high:
            raise MediaError(self.path, f"frame {expected} of {len(self.info.times)} does not decode")

    def size_hint(self):
        return os.path.getsize(self.path) if os.path.isfile(self.path) else 0

    def digest(self):
        return digest([self.path]) if os.path.isfile(self.path) else None

    def check_video(self) -> None:
        if not self.info.has_video:
            raise MediaError(self.path, "has no video track")

    def _read_decord(self, numbers: np.ndarray, arena: Arena | None) -> np.ndarray:
        info = self.info
        if not (info.exact_seek and info.codec in DECORD_EXACT and not info.open_groups):
            raise MediaError(self.path, f"decord gives wrong frames of such files ({info.codec}); read it with backend='pyav'")
        decord = need("decord", "decord", "backend='decord'")
        with as_media_error(self.path, "decord cannot read it"):
            reader = decord.VideoReader(self.path, num_threads=1)
            if len(reader) != len(info.times):
                raise ValueError(f"decord counts {len(reader)} frames, the container {len(info.times)}")
            return reader.get_batch(numbers.tolist()).asnumpy()

    def _read_pyav(self, numbers: np.ndarray, arena: Arena | None) -> np.ndarray:
        wanted, frames, info = set(numbers.tolist()), {}, self.info
        for key in _starts(info, int(numbers[0])):
            try:
                frames = _decode(self.path, wanted, info, key)
            except MediaError:
                if not key:
                    raise
            if not wanted - set(frames):
                break
        if missing := sorted(wanted - set(frames)):
            raise MediaError(self.path, f"frame {missing[0]} of {len(info.times)} does not decode")
        if len({frame.shape for frame in frames.values()}) > 1:
            raise MediaError(self.path, "changes its frame size on the way")
        shown = [frames[i] for i in numbers.tolist()]
        return np.stack(shown, out=None if arena is None else arena.place((len(shown), *shown[0].shape)))


def _starts(info: VideoInfo, first: int) -> Iterator[int]:
    """The key frames to begin at for frame ``first``: the last before it, then ever earlier ones, at the end 0 for the file's
    beginning.

    Containers mark key frames wrongly, and their indices mislead: where a wanted frame does not come, decoding begins earlier.
    """
    place, back = int(np.searchsorted(info.keys, first, "right")) - 1, 0
    while place - back >= 0 and info.keys[place - back]:
        yield int(info.keys[place - back])
        back = 2 * back + 1
    yield 0


def _decode(path: str, wanted: set[int], info: VideoInfo, key: int) -> dict[int, np.ndarray]:
    """The wanted frames by number, as far as decoding from frame ``key`` gives them."""
    frames = {}
    for number, frame in _decoded_frames(path, info, key, wanted):
        frames[number] = frame
        if len(frames) == len(wanted):
            break
    return frames


def _decoded_frames(path: str, info: VideoInfo, key: int, wanted: set[int] | None) -> Iterator[tuple[int, np.ndarray]]:
    """(number, frame) of the wanted frames, or of all, from key frame ``key``, or from the file's beginning where that is 0."""
    with as_media_error(path, "does not decode"), open_media(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        counter = _FrameCounter(info, stream)
        if key:
            container.seek(int(counter.ticks[key]), stream=stream)
        size = length_size(stream) if info.codec == "h264" and info.stamped and wanted is not None else 0
        begun = not key
        for packet in container.demux(stream):
            # Theora repeats a frame by an empty packet; an empty one without a stamp flushes the decoder
            if not packet.size and packet.dts is not None:
                continue
            if not begun:  # a seek may end elsewhere
                if (number := counter.key(packet)) is None:
                    continue
                key, begun = number, True
            stamped = size and packet.size and packet.pts is not None
            if stamped and counter.nearest(packet.pts) not in wanted and is_disposable(packet, size):
                continue
            for frame in packet.decode():
                number = counter.number(frame)
                # frames before the key frame are leading ones, which it does not make decodable
                if number >= key and not counter.before(frame) and (wanted is None or number in wanted):
                    yield number, np.rot90(_to_rgb(frame), round(frame.rotation / 90))


class _FrameCounter:
    """Gives the numbers of packets and frames as they come, in the order of showing.

    Attributes:
        ticks: (n,) time stamps of all frames, ascending.
        latest: number of the latest frame; None before the first.
    """

    def __init__(self, info: VideoInfo, stream: av.VideoStream):
        self.ticks = np.rint(info.times / float(stream.time_base)).astype(np.int64)
        self.stamped, self.keys, self.latest = info.stamped, info.keys, None

    def number(self, frame: av.VideoFrame) -> int:
        """The frame's, by its stamp; or where stamps do not give it, the next, after the first."""
        if frame.pts is not None and (self.stamped or self.latest is None):
            self.latest = self.nearest(frame.pts)
        else:
            self.latest = 0 if self.latest is None else self.latest + 1
        return self.latest

    def before(self, frame: av.VideoFrame) -> bool:
        """Whether the frame is shown before the first that counts: it needs what was cut off the file."""
        return self.stamped and frame.pts is not None and frame.pts < self.ticks[0]

    def nearest(self, tick: int) -> int:
        after = int(np.searchsorted(self.ticks, tick))
        before = after == len(self.ticks) or (after and tick - self.ticks[after - 1] < self.ticks[after] - tick)
        return after - 1 if before else after

    def key(self, packet: av.Packet) -> int | None:
        """The number of a packet at which decoding can begin."""
        if packet.pts is None or not packet.is_keyframe:
            return None
        number = self.nearest(packet.pts)
        return number if self.ticks[number] == packet.pts and number in self.keys else None


_reformatter = VideoReformatter()  # making one for every frame takes longer than its work


def _to_rgb(frame: av.VideoFrame) -> np.ndarray:
    return _reformatter.reformat(frame, format="rgb24").to_ndarray()
