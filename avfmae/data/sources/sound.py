"""The sound of a media file, decoded by PyAV and resampled to 16 kHz mono."""

from collections.abc import Iterator
from fractions import Fraction
from itertools import chain

import av
import numpy as np

from avfmae.data.config import SAMPLE_RATE
from avfmae.data.sources.probing import SEEKABLE, open_media
from avfmae.data.sources.source import MediaError, as_media_error

SEEK_BACK = 0.5  # seconds before a window from which its sound is decoded: codecs need the packets before


def read_sound(path: str, start: float, end: float) -> np.ndarray:
    """The sound between two time stamps of the file's clock; see :meth:`avfmae.data.sources.Source.sound`."""
    length = round((end - start) * SAMPLE_RATE)
    window, filled = np.zeros(length, np.float32), 0
    with as_media_error(path, "its sound does not decode"), open_media(path) as container:
        if not container.streams.audio:
            raise MediaError(path, "has no audio track")
        stream = container.streams.audio[0]
        exact = set(container.format.name.split(",")) & SEEKABLE and stream.time_base == Fraction(1, stream.rate)
        if start > 1.0 + SEEK_BACK and exact:  # in the sound's own track: the video's key frames are far apart
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
