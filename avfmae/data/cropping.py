"""Clips cut to their faces: by ``prepare``, and where raw files are given to a model that was trained on faces.

Both use :func:`find_face`, so that a model sees of a raw file what it would see of the file prepared.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from avfmae.data import faces
from avfmae.data.arena import Arena
from avfmae.data.augment import Box
from avfmae.data.clip import Clip
from avfmae.data.config import DataConfig, Preparation
from avfmae.data.mtcnn import is_installed
from avfmae.data.sources import MediaError, Source, open_clip

MOST = 500  # frames of a raw clip that faces are looked for in: all of a short one, of a long one those around the window
SAMPLED = 32  # clips of a list that are asked how they were prepared
STILL = 0.02  # spread, in shares of the frame, up to which given boxes are one place: a face found there is given that box


@dataclass(frozen=True)
class FoundFace:
    """Where the face of a clip is.

    Attributes:
        box: in pixels of the frame (x, y, width, height); None: none was found.
        share: of the frames looked at, how many show it. seen: how many faces are often seen.
        track, size: what the maps are made of: None for the middle of the frame of (H, W).
    """

    box: Box | None
    share: float
    seen: int
    track: faces.Track | None
    size: tuple[int, int]

    def warps(self, how: Preparation, frames: int, stored: int) -> Iterator[np.ndarray]:
        """For each of the frames the (2, 3) map from the square picture of ``stored`` pixels to it."""
        if self.track is None:
            height, width = self.size
            squares = np.tile([width / 2, height / 2, min(width, height)], (frames, 1))
        elif any(f.landmarks is not None for f in self.track.faces.values()):
            return faces.landmark_warps(self.track, frames, stored, how.margin)
        else:
            squares = faces.smooth_squares(self.track, frames, how.margin, how.follow)
        return faces.square_warps(squares, self.size, stored)


def find_face(source: Source, box: Box | None, how: Preparation, low: int, high: int, size: tuple[int, int]) -> FoundFace:
    """Finds the face in frames ``low`` to ``high`` of a source, whose frames are (H, W), as ``how`` says.

    ``box``: the one that is given, which detector ``"manifest"`` takes.
    """
    if how.detector == "precropped":
        return FoundFace(None, 1.0, 0, None, size)
    if how.detector == "manifest":
        assert box is not None, "box: is None, but the detector is 'manifest'"
        return FoundFace(box, 1.0, 1, faces.Track({0: faces.Face(box, 1.0)}), size)
    detector = faces.make_detector(how.detector, how.yunet)
    assert detector is not None
    tracks = faces.find_tracks(source.frames_between(low, high), detector, how.every)
    looked = -(-(high - low) // how.every)
    track = faces.choose(tracks, how.choose)
    if track is None or len(track.faces) < max(1, 0.1 * looked):
        return FoundFace(None, 0.0, 0, None, size)
    return FoundFace(track.box(), len(track.faces) / looked, sum(len(t.faces) > 0.3 * looked for t in tracks), track, size)


class FaceClip(Source):
    """A raw clip as a model saw those that it was trained on.

    Frames are cut to the face, as a prepared set would hold them. Where no pictures were stored (``how.size`` is None), they are
    the file's, and :attr:`face` is the box in them.

    The face's box is the clip's own, if it has one; else the face is looked for. Where boxes were given in training and all lay
    at one place, a face that is found there has that box, as a detector's boxes are drawn otherwise; and where no face is found,
    it is the usual place, else the middle of the frame. The clip has the flag ``no-face`` then.

    Args:
        source: of the clip's file. low, high: the clip's frames, from the first to the one after the last.
    """

    def __init__(self, source: Source, clip: Clip, how: Preparation, low: int, high: int):
        super().__init__(source.path)
        self.source, self.given, self.how, self.low, self.high = source, clip.face, how, low, high
        self.sound_path, self.flags, self.sound, self.is_cropped = (
            source.sound_path,
            source.flags,
            source.sound,
            how.size is not None,
        )
        self.face: Box | None = None
        self.found: dict[tuple[int, int], FoundFace] = {}

    @property
    def info(self):
        return self.source.info

    def frames(self, numbers, arena=None):
        numbers = self.checked(numbers)
        first = self.source.frames(numbers, None if self.how.size else arena)
        low, high = self.around(numbers)
        if (low, high) not in self.found:
            self.found[low, high] = self.find(low, high, first.shape[1:3])
        found = self.found[low, high]
        self.face = found.box
        if not self.how.size:
            return first
        warps = list(found.warps(self.how, high - low, self.how.size))
        out = (arena or Arena(1)).place((len(numbers), self.how.size, self.how.size, 3))
        for row, (frame, number) in enumerate(zip(first, numbers.tolist(), strict=True)):
            out[row] = faces.warp(frame, warps[number - low], self.how.size)
        return out

    def around(self, numbers: np.ndarray) -> tuple[int, int]:
        """The frames that the face is looked for in."""
        middle = int(numbers[0] + numbers[-1]) // 2
        low = max(self.low, min(middle - MOST // 2, self.high - MOST))
        return low, min(self.high, low + MOST)

    def find(self, low: int, high: int, size: tuple[int, int]) -> FoundFace:
        how, box, usual = self.how, self.given, _in_pixels(self.how.place, size)
        if how.detector == "precropped":
            return find_face(self.source, None, how, low, high, size)
        if box is None:
            found = find_face(self.source, None, looked_for(how), low, high, size)
            if found.box is None:
                self.flags.add("no-face")
            if how.detector != "manifest" or (found.box is None and usual is None):
                return found
            is_usual = found.box is None or (usual and how.spread <= STILL and faces.iou(found.box, usual) > 0.5)
            box = usual if is_usual else found.box
        return find_face(self.source, box, replace(how, detector="manifest"), low, high, size)


def _in_pixels(place: Box | None, size: tuple[int, int]) -> Box | None:
    if place is None:
        return None
    (x, y, w, h), (height, width) = place, size
    return (x - w / 2) * width, (y - h / 2) * height, w * width, h * height


def looked_for(how: Preparation) -> Preparation:
    """The same with a detector, where boxes were given."""
    return replace(how, detector="mtcnn" if is_installed() else "haar") if how.detector == "manifest" else how


def seen_by_training(clips: Sequence[Clip], data: DataConfig) -> tuple[Preparation | None, list[Preparation | None]]:
    """How the faces of training clips were cut out, in most of some clips that are spread over the list, and all ways found.

    None: sets that do not tell, or nothing can be opened.
    """
    ways: Counter[Preparation | None] = Counter()
    boxes: list[tuple[Preparation | None, list[float]]] = []
    for place in np.unique(np.linspace(0, len(clips) - 1, SAMPLED).round().astype(int)).tolist():
        clip = clips[place]
        with suppress(MediaError):
            source = open_clip(clip, data.sound_track)
            if (how := source.preparation) is None and not source.is_cropped:
                detector = "precropped" if clip.face is None else "manifest"
                how = Preparation(detector, margin=data.face_margin, sound_track=data.sound_track)
            ways[how] += 1
            if how is not None and how.detector == "manifest":
                boxes.append((how, _relative(source, clip)))
    how = ways.most_common(1)[0][0] if ways else None
    if how is None:
        return None, list(ways)
    if mine := np.array([box for way, box in boxes if way == how]).reshape(-1, 4).tolist():
        low, middle, high = np.percentile(mine, (5, 50, 95), axis=0)
        how = replace(how, place=tuple(middle.round(4).tolist()), spread=float(((high - low) / 2).max().round(4)))
    return how, list(ways)


def _relative(source: Source, clip: Clip) -> list[float]:
    """The given box's centre and size in shares of the frame."""
    if source.stored is not None:
        height, width = source.stored["source_height"], source.stored["source_width"]
        x, y, w, h = (source.stored[name] for name in ("face_x", "face_y", "face_w", "face_h"))
    else:
        assert clip.face is not None
        height, width = source.frames([0]).shape[1:3]
        x, y, w, h = clip.face
    return [(x + w / 2) / width, (y + h / 2) / height, w / width, h / height]


def with_a_detector(how: Preparation, yunet: str | None) -> tuple[Preparation, str | None]:
    """The same with a detector that is here, and a word if it is not the one that training's faces were found by.

    ``yunet``: where its model lies, if it is not where it was.
    """
    model = yunet or how.yunet or ""
    if how.detector == "yunet" and Path(model).is_file():
        return replace(how, yunet=model), None
    if how.detector == "yunet":
        lacking = f"yunet's model {model} is not here (--yunet FILE.onnx)"
    elif how.detector == "mtcnn" and not is_installed():
        lacking = "mtcnn is not installed (pip install 'avfmae[faces]')"
    else:
        return how, None
    return replace(how, detector="haar", yunet=None), f"{lacking}: haar finds the faces, and they are not aligned"


def with_time_for_faces(data: DataConfig) -> DataConfig:
    """Finding faces in a clip takes longer than reading it; the time that a worker may take is that of ``prepare``."""
    return replace(data, clip_seconds=max(data.clip_seconds, 300.0))
