"""Frames and sound out of media files, on one clock.

PyAV decodes. A frame's number is its place in the order of showing, which the time stamps give
or, where these are not those of showing (AVI), the order in which frames come when all of the file is decoded. A window
is decoded from the last key frame before it at which decoding may begin, and H.264's frames that are neither wanted nor
needed by others are left out. Whatever way is taken, a frame is bit for bit what decoding the whole file gives.

decord is there for those who ask for it, and reads only what it reads rightly (``DECORD_EXACT``): where frames are shown before
the key frame that they are coded after, it gives wrong ones and says nothing.

A path with a tar file in it (``set/000003.tar/clip``) is a clip of a prepared set (:mod:`avfmae.data.shards`).
"""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image

from avfmae.data import shards
from avfmae.data.bitstream import is_disposable, length_size
from avfmae.data.media import SAMPLE_RATE, Arena, MediaError, VideoInfo, blaming
from avfmae.data.probing import SEEKABLE, frame_files, open_media, probe
from avfmae.extras import need

SEEK_BACK = 0.5  # seconds before a window from which its sound is decoded: codecs need the packets before
DECORD_EXACT = {"h264", "vp8", "vp9", "av1", "mjpeg", "prores", "ffv1", "flv1"}
"""Codecs of which decord gives the right frames, in ``SEEKABLE`` containers, H.264 without open groups."""
BACKENDS = ("auto", "pyav", "decord")


def read_frames(path: str, indices: Sequence[int] | np.ndarray, backend: str = "auto", arena: Arena | None = None) -> np.ndarray:
    """Frames by number, in presentation order.

    Args:
        path: a video file, or a folder of frame images.
        indices: ascending frame numbers; repeats are allowed.
        backend: ``"pyav"``; ``"decord"``, for streams of which it gives the right frames; or ``"auto"``, which is PyAV: it
            gives the right frames of all, and decord gains nothing. Ignored inside a prepared set.
        arena: where the frames are to lie.

    Returns:
        (len(indices), H, W, 3) uint8, RGB.

    Raises:
        MediaError: a frame does not decode, or is asked of decord where decord gives wrong ones.
        ValueError: there is no such frame, or no such backend.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend: got {backend!r}, expected one of {', '.join(map(repr, BACKENDS))}")
    indices, info = np.asarray(indices), probe(path)
    if len(indices) == 0 or indices.min() < 0 or indices.max() >= len(info.times):
        raise ValueError(f"indices: got {indices.tolist()}, expected frame numbers from 0 to {len(info.times) - 1}")
    if shards.is_inside(path):
        return shards.open_clip(path).frames(indices, arena)
    if Path(path).is_dir():
        return _read_images(path, indices)
    if backend == "decord":
        return _read_decord(path, indices, info)
    return _read_pyav(path, indices, info, arena)


def _read_images(path: str, indices: np.ndarray) -> np.ndarray:
    files = frame_files(path)
    with blaming(path, "a frame image does not decode"):
        return np.stack([np.asarray(Image.open(files[i]).convert("RGB")) for i in indices])


def _read_decord(path: str, indices: np.ndarray, info: VideoInfo) -> np.ndarray:
    if not (info.exact_seek and info.codec in DECORD_EXACT and not info.open_groups):
        raise MediaError(path, f"decord gives wrong frames of such files ({info.codec}); read it with backend='pyav'")
    decord = need("decord", "decord", "backend='decord'")
    with blaming(path, "decord cannot read it"):
        reader = decord.VideoReader(path, num_threads=1)
        if len(reader) != len(info.times):
            raise ValueError(f"decord counts {len(reader)} frames, the container {len(info.times)}")
        return reader.get_batch(indices.tolist()).asnumpy()


def _read_pyav(path: str, indices: np.ndarray, info: VideoInfo, arena: Arena | None) -> np.ndarray:
    wanted, frames = set(indices.tolist()), {}
    for key in _starts(info, int(indices[0])):
        try:
            frames = _decode(path, wanted, info, key)
        except MediaError:
            if not key:
                raise
        if not wanted - set(frames):
            break
    if missing := sorted(wanted - set(frames)):
        raise MediaError(path, f"frame {missing[0]} of {len(info.times)} does not decode")
    if len({frame.shape for frame in frames.values()}) > 1:
        raise MediaError(path, "changes its picture size on the way")
    shown = [frames[i] for i in indices.tolist()]
    return np.stack(shown, out=None if arena is None else arena.place((len(shown), *shown[0].shape)))


def _starts(info: VideoInfo, first: int) -> Iterator[int]:
    """The key frames to begin at for frame ``first``: the last before it, then ever farther back, at the end 0 for the file's
    beginning.

    Containers lie about their key frames, and their indices mislead: where a wanted frame does not come, decoding begins earlier.
    """
    place, back = int(np.searchsorted(info.keys, first, "right")) - 1, 0
    while place - back >= 0 and info.keys[place - back]:
        yield int(info.keys[place - back])
        back = 2 * back + 1
    yield 0


def frames_between(path: str, low: int, high: int) -> Iterator[np.ndarray]:
    """The frames from number ``low`` up to ``high``, one after the other, each (H, W, 3) uint8 RGB; of a file, not of a prepared
    set.

    Raises:
        MediaError: one of them does not decode.
    """
    if Path(path).is_dir():
        yield from (_read_images(path, np.array([i]))[0] for i in range(low, high))
        return
    info, expected, shape = probe(path), low, None
    for number, frame in _decoded_frames(path, info, 0, None):
        if number < low or number < expected:
            continue
        if number > expected or number >= high:
            break
        if shape not in (None, frame.shape):
            raise MediaError(path, "changes its picture size on the way")
        shape, expected = frame.shape, expected + 1
        yield frame
        if expected == high:
            return
    if expected < high:
        raise MediaError(path, f"frame {expected} of {len(info.times)} does not decode")


def _decode(path: str, wanted: set[int], info: VideoInfo, key: int) -> dict[int, np.ndarray]:
    """The wanted frames by number, as far as decoding from frame ``key`` gives them."""
    frames = {}
    for number, frame in _decoded_frames(path, info, key, wanted):
        frames[number] = frame
        if len(frames) == len(wanted):
            break
    return frames


def _decoded_frames(path: str, info: VideoInfo, key: int, wanted: set[int] | None) -> Iterator[tuple[int, np.ndarray]]:
    """(number, picture) of the wanted frames, or of all, from key frame ``key``, or from the file's beginning where that is 0."""
    with blaming(path, "does not decode"), open_media(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        clock = _Clock(info, stream)
        if key:
            container.seek(int(clock.ticks[key]), stream=stream)
        size = length_size(stream) if info.codec == "h264" and info.stamped and wanted is not None else 0
        begun = not key
        for packet in container.demux(stream):
            if (
                not packet.size and packet.dts is not None
            ):  # Theora's way to repeat a frame; the packet without a stamp flushes the decoder
                continue
            if not begun:  # a seek may end elsewhere
                if (number := clock.key(packet)) is None:
                    continue
                key, begun = number, True
            if (
                size
                and packet.size
                and packet.pts is not None
                and clock.nearest(packet.pts) not in wanted
                and is_disposable(packet, size)
            ):
                continue
            for frame in packet.decode():
                number = clock.number(frame)
                if (
                    number >= key and not clock.before(frame) and (wanted is None or number in wanted)
                ):  # before the key frame are leading pictures
                    yield number, np.rot90(_to_rgb(frame), round(frame.rotation / 90))


class _Clock:
    """Tells the numbers of packets and frames as they come, in the order of showing.

    Attributes:
        ticks: (n,) time stamps of all frames, ascending.
    """

    def __init__(self, info: VideoInfo, stream: av.VideoStream):
        self.ticks = np.rint(info.times / float(stream.time_base)).astype(np.int64)
        self.stamped, self.keys, self.passed = info.stamped, info.keys, None

    def number(self, frame: av.VideoFrame) -> int:
        """The frame's, by its stamp; or where stamps do not tell, the next, after the first."""
        if frame.pts is not None and (self.stamped or self.passed is None):
            self.passed = self.nearest(frame.pts)
        else:
            self.passed = 0 if self.passed is None else self.passed + 1
        return self.passed

    def before(self, frame: av.VideoFrame) -> bool:
        """Whether the frame is shown before all that count: it needs what was cut off the file."""
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


_reformatter = VideoReformatter()  # making one anew for every frame takes longer than its work


def _to_rgb(frame: av.VideoFrame) -> np.ndarray:
    return _reformatter.reformat(frame, format="rgb24").to_ndarray()


def read_audio(path: str, start: float, end: float) -> np.ndarray:
    """The sound between two time stamps of the file's clock, as 16 kHz mono.

    Where the track has gaps, or begins or ends inside the window, there is silence up to the track's last sample:
    nothing is appended after it.

    Returns:
        (samples,) float32 in -1..1, at most (end - start)·16000 long.

    Raises:
        MediaError: there is no sound track, it does not decode, or none of it lies in the window.
    """
    if shards.is_inside(path):
        return shards.open_clip(path).sound(start, end)
    length = round((end - start) * SAMPLE_RATE)
    window, filled = np.zeros(length, np.float32), 0
    with blaming(path, "its sound does not decode"), open_media(path) as container:
        if not container.streams.audio:
            raise MediaError(path, "has no audio track")
        stream = container.streams.audio[0]
        exact = set(container.format.name.split(",")) & SEEKABLE and stream.time_base == Fraction(1, stream.rate)
        if start > 1.0 + SEEK_BACK and exact:  # in the sound's own track: the picture's key frames are far apart
            container.seek(int((start - SEEK_BACK) / stream.time_base), stream=stream)
        resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
        place = None  # where the next sample goes, in samples from the window's start
        for frame in chain(_on_grid(_decoded(container, stream, end), stream), [None]):  # None flushes
            for out in resampler.resample(frame):
                samples = out.to_ndarray()[0]
                stamped = place if out.pts is None else round((float(out.pts * out.time_base) - start) * SAMPLE_RATE)
                if place is None or abs((stamped or 0) - place) > 0.02 * SAMPLE_RATE:  # a gap, not a rounding
                    place = stamped or 0
                low, high = max(place, 0), min(place + len(samples), length)
                if high > low:
                    window[low:high] = samples[low - place : high - place]
                    filled = max(filled, high)
                place += len(samples)
    if not filled:
        raise MediaError(path, f"has no sound between {start:.2f} and {end:.2f} s")
    return window[:filled]


def _decoded(container, stream, end: float):
    for frame in container.decode(stream):
        if frame.pts is not None and frame.time >= end:
            return
        yield frame


def _on_grid(frames: Iterator[av.AudioFrame], stream) -> Iterator[av.AudioFrame]:
    """The frames without the first few samples, so that the resampler's 16 kHz fall on the same moments wherever decoding
    began."""
    period = Fraction(stream.rate, SAMPLE_RATE).numerator  # samples from one shared moment to the next
    first = next(frames, None)
    if first is None:
        return
    surplus = -((first.pts or 0) - (stream.start_time or 0)) % period
    if first.pts is not None and 0 < surplus < first.samples:
        channels = 1 if first.format.is_planar else first.layout.nb_channels
        cut = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(first.to_ndarray()[:, surplus * channels :]), first.format.name, first.layout.name
        )
        cut.sample_rate, cut.time_base, cut.pts = first.sample_rate, first.time_base, first.pts + surplus
        first = cut
    yield first
    yield from frames
