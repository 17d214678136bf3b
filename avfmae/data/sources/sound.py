"""The sound of a media file, decoded by PyAV and resampled to 16 kHz mono."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from fractions import Fraction
from itertools import chain
from typing import Any

import av
import numpy as np

from avfmae.data.config import SAMPLE_RATE
from avfmae.data.sources.probing import JUMPING, Index, continuous, formats, open_media
from avfmae.data.sources.source import MediaError, as_media_error

CUED = {"matroska", "webm", "flv"}  # containers that know where the video's key frames lie, and nothing of the sound
SEEK_BACK = 0.5  # seconds before a window from which its sound is decoded: codecs need the packets before
SETTLED = 0.15  # seconds before a window from which its sound is resampled
GAP = 0.05  # seconds by which stamps and samples must differ to be a gap, not a guess of the container's
LOUDEST = 2.0  # samples beyond it, where full scale is 1, are flagged


def read_sound(path: str, index: Index, start: float, end: float, flags: set[str]) -> np.ndarray:
    """The sound between two time stamps of the file's clock; see :meth:`avfmae.data.sources.Source.sound`.

    Args:
        index: of the file. flags: what is odd is added to it.
    """
    if index.sound is None:
        raise MediaError(path, "has no audio track")
    window, met = np.zeros(max(0, round((end - start) * SAMPLE_RATE)), np.float32), set()
    with as_media_error(path, "its sound does not decode"):
        filled = _fill(window, path, index, start, end, met, start > index.info.start + 1.0 + SEEK_BACK and not index.jumps)
        if filled is None:
            filled = _fill(window, path, index, start, end, met, False)
    if not filled and "sound-damaged" in met:
        raise MediaError(path, f"its sound does not decode between {start:.2f} and {end:.2f} s")
    window = window[:filled]
    if not np.isfinite(window).all():
        raise MediaError(path, f"its sound holds samples that are no numbers (NaN or Inf) between {start:.2f} and {end:.2f} s")
    if len(window) and np.abs(window).max() > LOUDEST:
        met.add("sound-beyond-full-scale")
    flags |= met
    return window.clip(-1, 1, out=window)


def _fill(window: np.ndarray, path: str, index: Index, start: float, end: float, met: set[str], seek: bool) -> int | None:
    """Puts the sound from ``start`` on into the window. Returns up to where; None: the seek failed or ended too late."""
    filled, place = 0, None  # where the next sample goes, in samples from the window's start
    with open_media(path) as container:
        stream: Any = container.streams[index.sound]
        if seek:
            try:
                _seek(container, index, stream, start - SEEK_BACK)
            except av.FFmpegError:
                return None
        frames = _decoded(container, stream, seek, start, end, met)
        for time, samples in _resampled(_on_grid(frames, stream)):
            if time is not None:
                if seek and place is None and time > start:
                    return None
                place = round((time - start) * SAMPLE_RATE)
            low, high = max(place, 0), min(place + len(samples), len(window))
            if high > low:
                window[low:high] = samples[low - place : high - place]
                filled = max(filled, high)
            place += len(samples)
    return filled


def _seek(container: Any, index: Index, stream: Any, time: float) -> None:
    kind = formats(container)
    key = int(np.searchsorted(index.info.times, time)) if kind & CUED and index.targets else 0
    if kind & JUMPING:  # which find a time by the packets of any track
        container.seek(int(time * av.time_base))
    elif key := next(index.starts(key - 1), 0) if key else 0:
        index.seek(container, key)
    else:  # in the sound's own track: the video's key frames are far apart
        container.seek(int(time / stream.time_base), stream=stream)


def _decoded(
    container: Any, stream: Any, sought: bool, start: float, end: float, met: set[str]
) -> Iterator[av.AudioFrame | None]:
    """The frames from a little before ``start`` to ``end``, in seconds, and None for a damaged packet."""
    begun = not sought
    for packet in continuous(container, stream):
        if not begun and packet.pts is not None and packet.pts * packet.time_base < start - SEEK_BACK - 0.1:
            continue
        try:
            frames = packet.decode()
        except av.FFmpegError:
            frames = [None] if begun else []
            met |= {"sound-damaged"} if begun else set()
        begun = begun or bool(frames)
        for frame in frames:
            if frame is not None and frame.pts is not None:
                if frame.time >= end + GAP:
                    return
                if frame.time < start - SETTLED:
                    continue
            yield frame


def _resampled(frames: Iterable[av.AudioFrame | None]) -> Iterator[tuple[float | None, np.ndarray]]:
    """(seconds, samples) of the frames, which may have gaps and change their rate, format and channels; seconds are given where
    samples do not follow the ones before."""
    resampler, kind, due, begin = None, None, 0.0, 0.0
    for frame in chain(frames, [None]):
        new = None if frame is None else (frame.format.name, frame.layout.name, frame.sample_rate)
        time = due if frame is None or frame.pts is None else frame.time
        if new != kind or abs(time - due) > GAP:
            if resampler is not None:
                yield from ((None, samples) for samples in resampler(None))
            resampler = None if frame is None else _Resampler(frame)
            kind, due, begin = new, time, time
        if frame is not None and resampler is not None:
            due += frame.samples / frame.sample_rate
            for samples in resampler(frame):
                yield begin, samples
                begin = None


class _Resampler:
    """To 16 kHz mono, of frames like the first. Channels are mixed by weights of sum 1, as FFmpeg does to 16 bits: a voice in
    both channels is as loud as in one. PyAV's own resampler would give up to the sum of all channels.
    """

    def __init__(self, frame: av.AudioFrame):
        self.graph = av.filter.Graph()
        source = self.graph.add_abuffer(
            sample_rate=frame.sample_rate, format=frame.format.name, layout=frame.layout.name,
            time_base=Fraction(1, frame.sample_rate),
        )  # fmt: skip
        mixer = self.graph.add("aresample", f"{SAMPLE_RATE}:ochl=mono:osf=flt:rematrix_maxval=1")
        self.graph.link_nodes(source, mixer, self.graph.add("abuffersink")).configure()

    def __call__(self, frame: av.AudioFrame | None) -> Iterator[np.ndarray]:
        """What is ready of the frame, or with None what is left."""
        self.graph.push(frame)
        with suppress(av.BlockingIOError, av.EOFError):
            while True:
                yield self.graph.pull().to_ndarray()[0]


def _on_grid(frames: Iterator[av.AudioFrame | None], stream: Any) -> Iterator[av.AudioFrame | None]:
    """The frames without the first few samples, so that the resampler's 16 kHz fall on the same moments wherever decoding
    began. Stamps that are not counts of samples do not tell."""
    period = Fraction(stream.rate, SAMPLE_RATE).numerator  # samples from one shared moment to the next
    first = next((frame for frame in frames if frame is not None), None)
    if first is None:
        return
    surplus = -((first.pts or 0) - (stream.start_time or 0)) % period
    if first.pts is not None and 0 < surplus < first.samples and stream.time_base == Fraction(1, stream.rate):
        channels = 1 if first.format.is_planar else first.layout.nb_channels
        cut = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(first.to_ndarray()[:, surplus * channels :]), first.format.name, first.layout.name
        )
        cut.sample_rate, cut.time_base, cut.pts = first.sample_rate, first.time_base, first.pts + surplus
        first = cut
    yield first
    yield from frames
