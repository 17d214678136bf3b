"""Frames and sound out of media files, on one clock.

Presentation time stamps come from the container's packets (PyAV) whatever decodes the pixels, because they are what
picture and sound share: decord counts every video from zero, and drops the first frames of containers that it cannot
seek exactly (MPEG program streams). So decord serves the containers where it is exact, PyAV everything else.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path

import av
import numpy as np
from PIL import Image

av.logging.set_level(av.logging.PANIC)  # what is wrong with a file is told by our own errors

SAMPLE_RATE = 16_000
NOMINAL_FPS = 25.0  # of frame images and of sound alone, which carry no frame times
EXACT_SEEK = {"mov", "mp4", "matroska", "webm", "flv"}  # containers in which decord's frame numbers are right
IMAGES = {".png", ".jpg", ".jpeg", ".bmp"}


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
    """

    times: np.ndarray
    start: float
    fps: float
    has_audio: bool
    exact_seek: bool


def _reason(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:160]}" if text else type(error).__name__


def _open(path: str) -> av.container.InputContainer:
    file = Path(path)
    if not file.exists():
        raise MediaError(path, "no such file")
    if file.stat().st_size == 0:
        raise MediaError(path, "the file is empty")
    try:
        return av.open(path)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise MediaError(path, f"is no readable media file ({_reason(error)})") from error


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
    if Path(path).is_dir():
        if not (count := len(frame_files(path))):
            raise MediaError(path, "the folder holds no frame images")
        return VideoInfo(np.arange(count) / NOMINAL_FPS, 0.0, NOMINAL_FPS, False, False)
    with _open(path) as container:
        if not container.streams.video and (need_video or not container.streams.audio):
            raise MediaError(path, "has no video track")
        stream = (container.streams.video or container.streams.audio)[0]
        ticks, end = [], 0.0
        try:
            for packet in container.demux():
                stamp = packet.dts if packet.pts is None else packet.pts
                if stamp is None:
                    continue
                end = max(end, float((stamp + (packet.duration or 0)) * packet.time_base))
                if packet.stream is stream and packet.size and not packet.is_discard:
                    ticks.append(stamp)
        except (av.FFmpegError, ValueError) as error:
            raise MediaError(path, f"breaks off after {len(ticks)} frames ({_reason(error)})") from error
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
        fps = (
            (len(times) - 1) / (times[-1] - times[0])
            if len(times) > 1 and times[-1] > times[0]
            else float(stream.average_rate or 25)
        )
        formats = set(container.format.name.split(","))
        return VideoInfo(times, start, fps, bool(container.streams.audio), bool(formats & EXACT_SEEK))


def read_frames(path: str, indices: Sequence[int] | np.ndarray, backend: str = "auto") -> np.ndarray:
    """Frames by number, in presentation order.

    Args:
        path: a video file, or a folder of frame images.
        indices: ascending frame numbers; repeats are allowed.
        backend: ``"decord"``, ``"pyav"``, or ``"auto"``: decord where its numbers are exact, and PyAV where it is not,
            is not installed or fails.

    Returns:
        (len(indices), H, W, 3) uint8, RGB.

    Raises:
        MediaError: a frame does not decode.
    """
    indices, info = np.asarray(indices), probe(path)
    if len(indices) == 0 or indices.min() < 0 or indices.max() >= len(info.times):
        raise ValueError(f"indices: got {indices.tolist()}, expected frame numbers from 0 to {len(info.times) - 1}")
    if Path(path).is_dir():
        return _read_images(path, indices)
    if backend == "decord" or (backend == "auto" and info.exact_seek):
        try:
            return _read_decord(path, indices, len(info.times))
        except Exception as error:
            if backend == "decord":
                raise MediaError(path, f"decord cannot read it ({_reason(error)})") from error
    return _read_pyav(path, indices, info)


def _read_images(path: str, indices: np.ndarray) -> np.ndarray:
    files = frame_files(path)
    try:
        return np.stack([np.asarray(Image.open(files[i]).convert("RGB")) for i in indices])
    except (OSError, ValueError) as error:
        raise MediaError(path, f"a frame image does not decode ({_reason(error)})") from error


def _read_decord(path: str, indices: np.ndarray, count: int) -> np.ndarray:
    import decord

    reader = decord.VideoReader(path, num_threads=1)
    if len(reader) != count:
        raise ValueError(f"decord counts {len(reader)} frames, the container {count}")
    return reader.get_batch(indices.tolist()).asnumpy()


def _read_pyav(path: str, indices: np.ndarray, info: VideoInfo) -> np.ndarray:
    wanted, frames = set(indices.tolist()), {}
    with _open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        try:
            for order, frame in enumerate(container.decode(stream)):
                number = order if frame.pts is None else int(np.abs(info.times - frame.time).argmin())
                if number in wanted:
                    frames[number] = frame.to_ndarray(format="rgb24")
                    if len(frames) == len(wanted):
                        break
        except (av.FFmpegError, ValueError) as error:
            raise MediaError(path, f"does not decode ({_reason(error)})") from error
    if missing := sorted(wanted - set(frames)):
        raise MediaError(path, f"frame {missing[0]} of {len(info.times)} does not decode")
    if len({frame.shape for frame in frames.values()}) > 1:
        raise MediaError(path, "changes its picture size on the way")
    return np.stack([frames[i] for i in indices.tolist()])


def read_audio(path: str, start: float, end: float) -> np.ndarray:
    """The sound between two time stamps of the file's clock, as 16 kHz mono.

    Where the track has gaps, or begins or ends inside the window, there is silence up to the track's last sample:
    nothing is appended after it.

    Returns:
        (samples,) float32 in -1..1, at most (end - start)·16000 long.

    Raises:
        MediaError: there is no sound track, it does not decode, or none of it lies in the window.
    """
    length = round((end - start) * SAMPLE_RATE)
    window, filled = np.zeros(length, np.float32), 0
    with _open(path) as container:
        if not container.streams.audio:
            raise MediaError(path, "has no audio track")
        stream = container.streams.audio[0]
        if start > 30:  # before that, decoding from the beginning is as quick and always exact
            container.seek(int((start - 5) * av.time_base))
        resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
        place = None  # where the next sample goes, in samples from the window's start
        try:
            for frame in chain(_decoded(container, stream, end), [None]):  # None flushes
                for out in resampler.resample(frame):
                    samples = out.to_ndarray()[0]
                    stamped = (
                        place if out.pts is None else round((float(out.pts * out.time_base) - start) * SAMPLE_RATE)
                    )
                    if place is None or abs((stamped or 0) - place) > 0.02 * SAMPLE_RATE:  # a gap, not a rounding
                        place = stamped or 0
                    low, high = max(place, 0), min(place + len(samples), length)
                    if high > low:
                        window[low:high] = samples[low - place : high - place]
                        filled = max(filled, high)
                    place += len(samples)
        except (av.FFmpegError, ValueError) as error:
            raise MediaError(path, f"its sound does not decode ({_reason(error)})") from error
    if not filled:
        raise MediaError(path, f"has no sound between {start:.2f} and {end:.2f} s")
    return window[:filled]


def _decoded(container, stream, end: float):
    for frame in container.decode(stream):
        if frame.pts is not None and frame.time >= end:
            return
        yield frame
