"""What is wrong with the media of clips: each is read as preparation reads it, in processes that are watched."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from avfmae.data import faces
from avfmae.data.clip import Clip
from avfmae.data.dataset import frame_range
from avfmae.data.prepare import cut_sound
from avfmae.data.sources import MediaError, open_clip
from avfmae.data.workers import TaskContext, WorkerFailure, Workers
from avfmae.datasets.interface import Dataset
from avfmae.processes import cores

LOOKED = 5  # frames of a clip in which a face is looked for


@dataclass(frozen=True)
class Checker:
    """Reads a clip as preparation does, without storing it: its first and last frames, its sound, and whether a face is seen."""

    has_sound: bool
    detector: str
    yunet: str | None

    def __call__(self):
        import cv2

        cv2.setNumThreads(1)
        find = None if self.detector == "precropped" else faces.make_detector(self.detector, self.yunet)
        return partial(self.check, find)

    def check(self, find: faces.Detector | None, clip: Clip, context: TaskContext) -> list[str]:
        """The faults, none for a good clip."""
        context.note(clip.id)
        found = []
        try:
            source = open_clip(clip)
            info = source.info
            low, high = frame_range(info, clip)
            frames = source.frames(np.linspace(low, high - 1, min(LOOKED, high - low)).round().astype(int))
            if find is not None and not any(find(list(frames))):
                found.append(f"no face is found in {len(frames)} frames")
            if self.has_sound:
                start = float(info.times[low])
                flags = cut_sound(source, start, float(info.times[high - 1]) + 1 / info.fps - start)[2]
                found += [f"is silent ({flag})" for flag in flags if flag in ("no-audio", "silent")]
        except MediaError as error:
            found.append(f"cannot be read: {error.reason}")
        return found


def faults(
    dataset: Dataset, clips: list[Clip], detector: str, yunet: str | None, workers: int, limit: float
) -> Iterator[tuple[str, str]]:
    """(path, reason) of each fault of the clips' media; a file at which a decoder hangs or crashes is one."""
    check = Checker("audio" in dataset.modalities, detector, yunet)
    with Workers(check, min(workers or cores(), len(clips)), limit, recycle=2000) as pool:
        for clip, result in pool.results(clips):
            reasons = [f"cannot be read: {result.reason}"] if isinstance(result, WorkerFailure) else result
            yield from ((clip.path, reason) for reason in reasons)
