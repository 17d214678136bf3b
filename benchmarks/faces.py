"""``avfmae bench faces``: how often each detector finds the face, how well its box fits, and how long a frame takes; on frames of
given clips, and on the same frames turned, blurred, darkened and shrunk to a crowd."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from rich.box import SIMPLE
from rich.table import Table

from avfmae.console import console
from avfmae.data.augment import Box
from avfmae.data.faces import AT_ONCE, Face, detect, iou, make_detector
from avfmae.data.manifest import read_manifest
from avfmae.data.sources import open_clip
from avfmae_benchmarks import results
from avfmae_benchmarks.measure import interleave, machine
from avfmae_benchmarks.options import FacesConfig

FITS = 0.25  # least overlap of a box with the given one: detectors draw their boxes differently, from chin to brow or to hair
Shown = tuple[np.ndarray, list[Box]]


@dataclass(frozen=True)
class Condition:
    """A way of changing a frame and the boxes of its faces."""

    name: str
    change: Callable[[np.ndarray, Box], Shown]


def bench_faces(run: FacesConfig) -> list[dict]:
    """Runs and prints the table. Returns the rows."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    names = ("mtcnn", "haar", *(("yunet",) if run.yunet else ()))
    detectors = {name: made for name in names if (made := make_detector(name, run.yunet and str(run.yunet), device))}
    given = list(frames_of(run))
    if not given:
        raise ValueError(f"{run.source}: no clip has a face box, expected the columns face_x, face_y, face_w and face_h")
    table, rows = Table("found, overlap, false alarms and milliseconds a frame", *names, box=SIMPLE), []
    for condition in CONDITIONS:
        shown = [condition.change(frame, box) for frame, box in given]
        groups = [part for group in by_size(shown) for part in pieces(group)]
        found: dict[str, list[tuple[list[Box], list[Face]]]] = {}

        def look(name: str, groups=groups, found=found) -> None:
            found[name] = [
                (boxes, faces)
                for group in groups
                for (_, boxes), faces in zip(group, detect(detectors[name], [frame for frame, _ in group]), strict=True)
            ]

        timings = interleave({name: lambda name=name: look(name) for name in names}, torch.device(device), run.rounds, 1)
        row = {name: score(found[name]) | {"ms": 1000 * timings[name].median / len(shown)} for name in names}
        rows += [machine(torch.device(device)) | {"condition": condition.name, "detector": name} | row[name] for name in names]
        cells = (f"{r['found']:4.0%}  {r['iou']:.2f}  {r['false']:.2f}  {r['ms']:5.1f}" for r in row.values())
        table.add_row(condition.name, *cells)
    torch.set_num_threads(threads)
    console.print(table)
    if run.save:
        console.print(f"added to {results.append('faces', rows, run.out)}", highlight=False)
    return rows


def frames_of(run: FacesConfig) -> Iterator[tuple[np.ndarray, Box]]:
    """Frames that are spread over each clip of the manifest that has a face box."""
    for clip in read_manifest(run.source):
        if clip.face is not None:
            source = open_clip(clip)
            for number in np.linspace(0, len(source.info.times) - 1, run.frames + 2).round().astype(int)[1:-1]:
                yield source.frames([number])[0], clip.face


def by_size(shown: list[Shown]) -> list[list[Shown]]:
    """The frames in groups of one size, which detectors are given together."""
    return [[s for s in shown if s[0].shape == shape] for shape in dict.fromkeys(frame.shape for frame, _ in shown)]


def pieces(group: list[Shown]) -> list[list[Shown]]:
    return [group[k : k + AT_ONCE] for k in range(0, len(group), AT_ONCE)]


def score(found: list[tuple[list[Box], list[Face]]]) -> dict[str, float]:
    """The share of faces that are found, the mean overlap of these, and the false alarms a frame."""
    overlaps, wanted, false = [], 0, 0
    for boxes, faces in found:
        wanted += len(boxes)
        false += sum(max((iou(face.box, box) for box in boxes), default=0.0) < FITS for face in faces)
        best = [max((iou(face.box, box) for face in faces), default=0.0) for box in boxes]
        overlaps += [value for value in best if value >= FITS]
    return {"found": len(overlaps) / wanted, "iou": float(np.mean(overlaps)) if overlaps else 0.0, "false": false / len(found)}


def moved(frame: np.ndarray, box: Box, matrix: np.ndarray) -> Shown:
    """The frame under a (2, 3) map, and the box around where the given one's middle goes, as large as it becomes."""
    x, y, w, h = box
    middle = matrix @ (x + w / 2, y + h / 2, 1)
    scale = np.linalg.norm(matrix[:, :2], axis=0)
    w, h = w * scale[0], h * scale[1]
    turned = cv2.warpAffine(frame, matrix, frame.shape[1::-1], borderMode=cv2.BORDER_REPLICATE)
    return turned, [(middle[0] - w / 2, middle[1] - h / 2, w, h)]


def turned(degrees: float) -> Condition:
    def change(frame: np.ndarray, box: Box) -> Shown:
        middle = (box[0] + box[2] / 2, box[1] + box[3] / 2)
        return moved(frame, box, cv2.getRotationMatrix2D(middle, degrees, 1))

    return Condition(f"turned by {degrees:g}°", change)


def narrowed(share: float) -> Condition:
    """A head that is turned to the side shows less of its width."""

    def change(frame: np.ndarray, box: Box) -> Shown:
        middle = box[0] + box[2] / 2
        return moved(frame, box, np.array([[share, 0, (1 - share) * middle], [0, 1, 0]]))

    return Condition(f"narrowed to {share:.0%}", change)


def blurred(share: float) -> Condition:
    return Condition(
        f"blurred by {share:.0%} of the face", lambda frame, box: (cv2.GaussianBlur(frame, (0, 0), share * box[2]), [box])
    )


def darkened(share: float) -> Condition:
    """With the noise that a camera adds in the dark."""

    def change(frame: np.ndarray, box: Box) -> Shown:
        noise = np.random.default_rng(0).normal(0, 3, frame.shape)
        return (frame * share + noise).clip(0, 255).astype(np.uint8), [box]

    return Condition(f"darkened to {share:.0%}", change)


def crowded(side: int) -> Condition:
    """``side`` × ``side`` small copies in one frame of the same size."""

    def change(frame: np.ndarray, box: Box) -> Shown:
        height, width = frame.shape[0] // side, frame.shape[1] // side
        small = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
        x, y, w, h = (v / side for v in box)
        boxes = [(x + i * width, y + k * height, w, h) for i in range(side) for k in range(side)]
        return np.tile(small, (side, side, 1)), boxes

    return Condition(f"a crowd of {side * side}", change)


CONDITIONS = (
    Condition("as they are", lambda frame, box: (frame, [box])),
    turned(15), turned(30), turned(45), narrowed(0.7), narrowed(0.5), blurred(0.03), blurred(0.06), darkened(0.3), darkened(0.1),
    crowded(2), crowded(3),
)  # fmt: skip
