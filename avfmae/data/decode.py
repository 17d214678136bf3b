"""Frames and sound out of media files, on one clock.

Presentation time stamps come from the container's packets (PyAV) whatever decodes the pixels, because they are what
picture and sound share: decord counts every video from zero, and drops the first frames of containers that it cannot
seek exactly (MPEG program streams). So decord serves the containers where it is exact, PyAV everything else; and H.264,
where PyAV leaves out the frames that are neither wanted nor needed by others.

A path with a tar file in it (``set/000003.tar/clip``) is a clip of a prepared set (:mod:`avfmae.data.shards`).
"""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import chain
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image

from avfmae.data import shards
from avfmae.data.media import SAMPLE_RATE, Arena, MediaError, VideoInfo, blaming, is_disposable

av.logging.set_level(av.logging.PANIC)  # what is wrong with a file is told by our own errors

LONGEST = 86_400.0  # seconds; a file whose stamps claim more is broken
LARGEST_FRAME = 40_000_000  # pixels; what claims more is broken
SEEK_BACK = 0.5  # seconds before a window from which its sound is decoded: codecs need the packets before
NOMINAL_FPS = 25.0  # of frame images and of sound alone, which carry no frame times
EXACT_SEEK = {"mov", "mp4", "matroska", "webm", "flv"}  # containers in which decord's frame numbers are right
IMAGES = {".png", ".jpg", ".jpeg", ".bmp"}


def _open(path: str) -> av.container.InputContainer:
    file = Path(path)
    if not file.exists():
        raise MediaError(path, "no such file")
    if file.stat().st_size == 0:
        raise MediaError(path, "the file is empty")
    with blaming(path, "is no readable media file"):
        return av.open(path)


def frame_files(folder: str) -> list[Path]:
    """The frame images of a folder, in the order of their names."""
    return sorted(f for f in Path(folder).iterdir() if f.suffix.lower() in IMAGES)


@lru_cache(maxsize=65536)
def probe(path: str, need_video: bool = True) -> VideoInfo:
    """Reads a video's frame times without decoding it.

    Args:
        need_video: a file of sound alone is an error; else it gets the frame times that a video beside it would have.

    Raises:
        MediaError: missing, empty, truncated, or no video.
    """
    if shards.is_inside(path):
        return shards.open_clip(path).info
    if Path(path).is_dir():
        if not (count := len(frame_files(path))):
            raise MediaError(path, "the folder holds no frame images")
        return VideoInfo(np.arange(count) / NOMINAL_FPS, 0.0, NOMINAL_FPS, False, False)
    ticks: list[int] = []
    with blaming(path, lambda: f"breaks off after {len(ticks)} frames"), _open(path) as container:
        return _probe(path, container, need_video, ticks)


def _probe(path: str, container: av.container.InputContainer, need_video: bool, ticks: list[int]) -> VideoInfo:
    if not container.streams.video and (need_video or not container.streams.audio):
        raise MediaError(path, "has no video track")
    stream = (container.streams.video or container.streams.audio)[0]
    if stream.type == "video" and stream.codec_context.width * stream.codec_context.height > LARGEST_FRAME:
        raise MediaError(path, f"claims frames of {stream.codec_context.width} x {stream.codec_context.height} pixels")
    keys, end = [], 0.0
    for packet in container.demux():
        stamp = packet.dts if packet.pts is None else packet.pts
        if stamp is None:
            continue
        end = max(end, float((stamp + (packet.duration or 0)) * packet.time_base))
        if packet.stream is stream and packet.size and not packet.is_discard:
            ticks.append(stamp)
            if packet.is_keyframe:
                keys.append(stamp)
    if not ticks:
        raise MediaError(path, "has no frames")
    if stream.frames > len(ticks) + 1:
        raise MediaError(path, f"is truncated: {len(ticks)} of {stream.frames} frames are there")
    start = (container.start_time or 0) / av.time_base
    expected = start + (container.duration or 0) / av.time_base
    if expected - end > max(0.5, 0.1 * expected) and "mpeg" not in container.format.name:
        raise MediaError(path, f"is truncated: {end:.2f} of {expected:.2f} s are there")
    if stream.type == "audio":
        times = start + np.arange(max(1, int((end - start) * NOMINAL_FPS))) / NOMINAL_FPS
        return VideoInfo(times, start, NOMINAL_FPS, True, False)
    times = np.sort(np.array(ticks)) * float(stream.time_base)
    if times[-1] - times[0] > LONGEST:
        raise MediaError(path, f"claims to last {times[-1] - times[0]:.3g} s")
    fps = (len(times) - 1) / (times[-1] - times[0]) if times[-1] > times[0] else float(stream.average_rate or NOMINAL_FPS)
    formats = set(container.format.name.split(","))
    return VideoInfo(
        times, start, fps, bool(container.streams.audio), bool(formats & EXACT_SEEK),
        np.searchsorted(np.sort(ticks), np.sort(keys or ticks[:1])), stream.codec_context.name,
    )  # fmt: skip


def read_frames(
    path: str, indices: Sequence[int] | np.ndarray, backend: str = "auto", arena: Arena | None = None
) -> np.ndarray:
    """Frames by number, in presentation order.

    Args:
        path: a video file, or a folder of frame images.
        indices: ascending frame numbers; repeats are allowed.
        backend: ``"decord"``, ``"pyav"``, or ``"auto"``: PyAV for H.264; decord for what else its numbers are exact of, and
            PyAV where they are not, or decord is not installed or fails. Ignored inside a prepared set.
        arena: where the frames are to lie.

    Returns:
        (len(indices), H, W, 3) uint8, RGB.

    Raises:
        MediaError: a frame does not decode.
    """
    indices, info = np.asarray(indices), probe(path)
    if len(indices) == 0 or indices.min() < 0 or indices.max() >= len(info.times):
        raise ValueError(f"indices: got {indices.tolist()}, expected frame numbers from 0 to {len(info.times) - 1}")
    if shards.is_inside(path):
        return shards.open_clip(path).frames(indices, arena)
    if Path(path).is_dir():
        return _read_images(path, indices)
    if backend == "decord" or (backend == "auto" and info.exact_seek and info.codec != "h264"):
        try:
            with blaming(path, "decord cannot read it"):
                return _read_decord(path, indices, len(info.times))
        except MediaError:
            if backend == "decord":
                raise
    return _read_pyav(path, indices, info, arena)


def _read_images(path: str, indices: np.ndarray) -> np.ndarray:
    files = frame_files(path)
    with blaming(path, "a frame image does not decode"):
        return np.stack([np.asarray(Image.open(files[i]).convert("RGB")) for i in indices])


def _read_decord(path: str, indices: np.ndarray, count: int) -> np.ndarray:
    import decord

    reader = decord.VideoReader(path, num_threads=1)
    if len(reader) != count:
        raise ValueError(f"decord counts {len(reader)} frames, the container {count}")
    return reader.get_batch(indices.tolist()).asnumpy()


def _read_pyav(path: str, indices: np.ndarray, info: VideoInfo, arena: Arena | None) -> np.ndarray:
    wanted = set(indices.tolist())
    first = int(info.keys[max(0, np.searchsorted(info.keys, indices[0], "right") - 1)]) if info.exact_seek else 0
    frames = _decode(path, wanted, info, first)
    if first and wanted - set(frames):  # some files' indices mislead
        frames = _decode(path, wanted, info, 0)
    if missing := sorted(wanted - set(frames)):
        raise MediaError(path, f"frame {missing[0]} of {len(info.times)} does not decode")
    if len({frame.shape for frame in frames.values()}) > 1:
        raise MediaError(path, "changes its picture size on the way")
    shown = [frames[i] for i in indices.tolist()]
    return np.stack(shown, out=None if arena is None else arena.place((len(shown), *shown[0].shape)))


def frames_between(path: str, low: int, high: int) -> Iterator[np.ndarray]:
    """The frames from number ``low`` up to ``high``, one after the other, each (H, W, 3) uint8 RGB; of a file, not of a prepared set.

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


def _decode(path: str, wanted: set[int], info: VideoInfo, first: int) -> dict[int, np.ndarray]:
    """The wanted frames by number, decoding from frame ``first``, at which decoding can begin."""
    frames = {}
    for number, frame in _decoded_frames(path, info, first, wanted):
        frames[number] = frame
        if len(frames) == len(wanted):
            break
    return frames


def _decoded_frames(path: str, info: VideoInfo, first: int, wanted: set[int] | None) -> Iterator[tuple[int, np.ndarray]]:
    """(number, picture) of the wanted frames, or of all, from frame ``first``."""
    order = first
    with blaming(path, "does not decode"), _open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        if first:
            container.seek(round(info.times[first] / stream.time_base), stream=stream)
        avcc = stream.codec_context.name == "h264" and (stream.codec_context.extradata or b"")[:1] == b"\x01"
        for packet in container.demux(stream):
            if avcc and wanted is not None and packet.pts is not None and packet.size:
                number = _nearest(info.times, float(packet.pts * packet.time_base))
                if number not in wanted and is_disposable(packet):
                    continue
            for frame in packet.decode():
                number = order if frame.pts is None else _nearest(info.times, frame.time)
                order += 1
                if wanted is None or number in wanted:
                    yield number, np.rot90(_to_rgb(frame), round(frame.rotation / 90))


_reformatter = VideoReformatter()  # making one anew for every frame takes longer than its work


def _to_rgb(frame: av.VideoFrame) -> np.ndarray:
    return _reformatter.reformat(frame, format="rgb24").to_ndarray()


def _nearest(times: np.ndarray, time: float) -> int:
    after = int(np.searchsorted(times, time))
    return after - 1 if after == len(times) or (after and time - times[after - 1] < times[after] - time) else after


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
    with blaming(path, "its sound does not decode"), _open(path) as container:
        if not container.streams.audio:
            raise MediaError(path, "has no audio track")
        stream = container.streams.audio[0]
        exact = set(container.format.name.split(",")) & EXACT_SEEK and stream.time_base == Fraction(1, stream.rate)
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
    """The frames without the first few samples, so that the resampler's 16 kHz fall on the same moments wherever decoding began."""
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
