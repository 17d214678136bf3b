"""Videos with what a model says drawn in, as boxes and bars, and the sound as it was."""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from avfmae.data.augment import Box
from avfmae.data.sources import Source
from avfmae.viz.video import sound_frames, write_mp4

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
