"""An mp4 of pictures and sound at their times."""

from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from avfmae.data.sources.probing import open_media, probe
from avfmae.files import atomic_write

TICKS = 90_000  # a second, of the video's time stamps
RATE = 48_000  # of the sound


def write_mp4(
    path: Path, pictures: Iterable[tuple[float, np.ndarray]], fps: float, sound: Iterator[tuple[float, av.AudioFrame]] | None
) -> None:
    """Writes pictures and sound.

    Args:
        pictures: (seconds, (H, W, 3) uint8), ascending, of one size. fps: what the file says of itself.
        sound: (seconds at its end, frame), of 48 kHz in stereo; None: there is none.
    """
    with atomic_write(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        video: Any = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        video.pix_fmt, video.options = "yuv420p", {"preset": "veryfast", "crf": "21"}
        video.codec_context.time_base = Fraction(1, TICKS)
        track: Any = None if sound is None else container.add_stream("aac", rate=RATE, layout="stereo")
        heard = iter(()) if sound is None else sound
        later, stamp = next(heard, None), -1
        for time, picture in pictures:
            if stamp < 0:
                video.height, video.width = (n + n % 2 for n in picture.shape[:2])
            while later is not None and later[0] <= time:
                container.mux(track.encode(later[1]))
                later = next(heard, None)
            if picture.shape[0] % 2 or picture.shape[1] % 2:  # yuv420p has even sizes
                picture = np.pad(picture, ((0, picture.shape[0] % 2), (0, picture.shape[1] % 2), (0, 0)), "edge")
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            stamp = max(stamp + 1, round(time * TICKS))  # stamps that repeat are told apart
            frame.pts, frame.time_base = stamp, Fraction(1, TICKS)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        while later is not None:
            container.mux(track.encode(later[1]))
            later = next(heard, None)
        if track is not None:
            container.mux(track.encode())


def frames_of_sound(samples: np.ndarray, rate: int) -> Iterator[tuple[float, av.AudioFrame]]:
    """(samples,) float32, mono, as :func:`write_mp4` takes sound."""
    whole, resampler, begun = av.AudioFrame.from_ndarray(samples[None], "flt", "mono"), _resampler(), 0
    whole.sample_rate, whole.pts = rate, 0
    for piece in (*resampler.resample(whole), *resampler.resample(None)):
        piece.pts, piece.time_base = begun, Fraction(1, RATE)
        begun += piece.samples
        yield begun / RATE, piece


def _resampler() -> av.AudioResampler:
    return av.AudioResampler(format="fltp", layout="stereo", rate=RATE)


def sound_frames(path: str, track: str | None, start: float) -> Iterator[tuple[float, av.AudioFrame]]:
    """(seconds at its end, frame) of the file's sound from ``start`` on, as AAC takes it; damaged packets are left out."""
    index, begun, kind = probe(path, track), 0, None
    with open_media(path) as container:
        for packet in container.demux(container.streams[index.sound]):
            try:
                decoded = packet.decode()
            except av.FFmpegError:
                continue
            for frame in decoded:
                if kind != (kind := (frame.format.name, frame.layout.name, frame.sample_rate)):  # recordings change it midway
                    resampler = _resampler()
                for piece in resampler.resample(frame):
                    if piece.time is not None:
                        begun = max(begun, round((piece.time - start) * RATE))
                    piece.pts, piece.time_base = begun, Fraction(1, RATE)
                    begun += piece.samples
                    yield begun / RATE, piece
