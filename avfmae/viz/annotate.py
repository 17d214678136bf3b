"""Videos that are written: with what a model says drawn in, as boxes and bars, and the sound as it was."""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from avfmae.data.augment import Box
from avfmae.data.sources import Source
from avfmae.data.sources.probing import open_media, probe
from avfmae.files import atomic_write

TICKS = 90_000  # a second, of the video's time stamps
RATE = 48_000  # of the sound
APART = 1.0  # seconds between two findings of a face over which its box is drawn
COLOURS = ((66, 153, 225), (237, 137, 54), (72, 187, 120), (245, 101, 101), (159, 122, 234), (236, 201, 75))


class Annotations:
    """What is drawn at each moment.

    Args:
        rows, columns: as :class:`avfmae.inference.predictor.Prediction` has them.
        boxes: by the face's number, its (seconds, box)es, ascending.
    """

    def __init__(
        self, rows: Sequence[Mapping[str, Any]], columns: Sequence[str], boxes: Mapping[int, Sequence[tuple[float, Box]]]
    ):
        self.columns, self.boxes = columns, boxes
        self.times = {number: [time for time, _ in found] for number, found in boxes.items()}
        self.said: dict[int | None, tuple[list[float], list[Mapping[str, Any]]]] = {}
        for row in rows:
            if columns and row.get(columns[0]) is not None:
                middles, mine = self.said.setdefault(row["face"], ([], []))
                middles.append((row["start"] + row["end"]) / 2)
                mine.append(row)

    def box(self, number: int, time: float) -> Box | None:
        """The face's box, between those that were found; None where it is not shown."""
        times, found = self.times[number], self.boxes[number]
        place = bisect_left(times, time)
        around = found[max(0, place - 1) : place + 1]
        if (
            not around
            or min(abs(t - time) for t, _ in around) > APART
            or (len(around) == 2 and around[1][0] - around[0][0] > APART)
        ):
            return None
        moments, corners = zip(*around, strict=True)
        x, y, w, h = (float(np.interp(time, moments, values)) for values in zip(*corners, strict=True))
        return x, y, w, h

    def row(self, number: int | None, time: float) -> Mapping[str, Any] | None:
        """What is said of the face in the window whose middle is nearest, if that window holds this moment."""
        middles, rows = self.said.get(number, ([], []))
        if not rows:
            return None
        place = bisect_left(middles, time)
        nearest = min(range(max(0, place - 1), min(len(rows), place + 1)), key=lambda k: abs(middles[k] - time))
        return rows[nearest] if rows[nearest]["start"] - 0.05 <= time <= rows[nearest]["end"] + 0.05 else None

    def draw(self, frame: np.ndarray, time: float) -> np.ndarray:
        """The (H, W, 3) frame with boxes and bars."""
        frame = np.ascontiguousarray(frame)
        if None in self.said and (row := self.row(None, time)):
            self.bars(frame, row, 8, 8)
        for number in self.boxes:
            if (box := self.box(number, time)) is None:
                continue
            x, y, w, h = map(round, box)
            colour = COLOURS[(number - 1) % len(COLOURS)]
            cv2.rectangle(frame, (x, y), (x + w, y + h), colour, 2)
            cv2.putText(frame, str(number), (x, max(12, y - 4)), cv2.FONT_HERSHEY_SIMPLEX, 0.5, colour, 1, cv2.LINE_AA)
            if row := self.row(number, time):
                self.bars(frame, row, x + w + 6 if x + w + 106 < frame.shape[1] else max(0, x - 106), y)
        return frame

    def bars(self, frame: np.ndarray, row: Mapping[str, Any], left: int, top: int) -> None:
        """A line a number, of 100 pixels at most, with its name; shares are as long as they are, others by their largest."""
        largest = max(1.0, *(abs(row[name]) for name in self.columns))
        top = max(0, min(top, frame.shape[0] - 14 * len(self.columns)))
        area = frame[top : top + 14 * len(self.columns), max(0, left) : left + 100]
        area //= 2  # darker, so that letters are read on any picture
        for k, name in enumerate(self.columns):
            y = top + 14 * k
            length = round(100 * abs(row[name]) / largest)
            cv2.rectangle(frame, (left, y + 2), (left + length, y + 12), COLOURS[k % len(COLOURS)], -1)
            text = name.encode("ascii", "replace").decode()
            cv2.putText(frame, text, (left + 2, y + 11), cv2.FONT_HERSHEY_SIMPLEX, 0.35, (255, 255, 255), 1, cv2.LINE_AA)


def write_annotated(
    source: Source,
    draw: Callable[[np.ndarray, float], np.ndarray],
    path: Path,
    advance: Callable[[float], None] = lambda share: None,
) -> None:
    """Writes an mp4 of the source's frames, each as ``draw(frame, seconds)`` gives it, at their times, with the file's sound.

    Args:
        advance: is told the share that is done.

    Raises:
        MediaError: a frame does not decode; nothing is written then.
    """
    info = source.info

    def drawn() -> Iterator[tuple[float, np.ndarray]]:
        for number, frame in enumerate(source.frames_between(0, len(info.times))):
            time = float(info.times[number] - info.start)
            yield time, draw(frame, time)
            advance((number + 1) / len(info.times))

    write_mp4(
        path, drawn(), info.fps, sound_frames(source.sound_path, source.sound_track, info.start) if info.has_audio else None
    )


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
