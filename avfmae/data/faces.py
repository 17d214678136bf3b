"""Where the face of a clip is: detect it in every few frames, link the detections to tracks, choose one, smooth it.

Boxes are (x, y, width, height) in pixels of the frame.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

from avfmae.console import console

LARGEST_SIDE = 640  # frames are scaled down to it for detection
AT_ONCE = 8  # frames that a detector is given together
LINK = 0.3  # least overlap of two detections of one face
SMOOTHED = 25  # frames of the window that smooths a face's place
SMALLEST = 0.08  # of a face, in shares of the frame's shorter side

# Left eye, right eye, nose, left and right corner of the mouth, in shares of an aligned square: the positions that face
# recognition has agreed on (ArcFace's 112-pixel template).
TEMPLATE = np.array([[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]) / 112


@dataclass(frozen=True)
class Face:
    """One detection. ``landmarks``: (5, 2) in the order of TEMPLATE, where the detector gives them."""

    box: tuple[float, float, float, float]
    score: float
    landmarks: np.ndarray | None = None


Detector = Callable[[Sequence[np.ndarray]], list[list[Face]]]  # of (H, W, 3) uint8 RGB frames of one size


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Overlap of two boxes, as intersection over union."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(0.0, width) * max(0.0, height)
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


class HaarDetector:
    """OpenCV's frontal-face cascade: comes with the library, needs no download, and finds faces that look at the camera."""

    def __init__(self):
        self.lock = threading.Lock()  # OpenCV's detectors keep what they work on
        self.cascade = cv2.CascadeClassifier(cv2.data.haarcascades + "haarcascade_frontalface_default.xml")

    def __call__(self, frames: Sequence[np.ndarray]) -> list[list[Face]]:
        return [self.find(frame) for frame in frames]

    def find(self, frame: np.ndarray) -> list[Face]:
        grey = cv2.equalizeHist(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY))
        side = max(20, round(SMALLEST * min(grey.shape)))
        options = {"scaleFactor": 1.1, "minNeighbors": 5, "minSize": (side, side), "outputRejectLevels": True}
        with self.lock:
            boxes, _, scores = self.cascade.detectMultiScale3(grey, **options)
        found = sorted(zip(map(tuple, boxes), scores, strict=True))  # OpenCV's threads give them in any order
        return [Face(tuple(map(float, box)), float(score)) for box, score in found]


class YuNetDetector:
    """YuNet (Wu et al., 2023): five landmarks, turned and small faces too. OpenCV's model zoo has its ONNX file."""

    def __init__(self, model: Path):
        if not Path(model).is_file():
            raise FileNotFoundError(f"{model}: no such YuNet model (an .onnx file)")
        self.lock = threading.Lock()
        try:
            self.net = cv2.FaceDetectorYN.create(str(model), "", (320, 320), score_threshold=0.7)
        except cv2.error as error:
            raise ValueError(f"{model}: is no YuNet model that OpenCV reads ({error.err})") from error

    def __call__(self, frames: Sequence[np.ndarray]) -> list[list[Face]]:
        return [self.find(frame) for frame in frames]

    def find(self, frame: np.ndarray) -> list[Face]:
        with self.lock:
            self.net.setInputSize(frame.shape[1::-1])
            found = self.net.detect(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))[1]
        rows = [] if found is None else found
        return [Face(tuple(map(float, row[:4])), float(row[14]), row[4:14].reshape(5, 2)) for row in rows]


class MTCNNDetector:
    """MTCNN (:mod:`avfmae.data.mtcnn`): five landmarks, turned and small faces too; its weights come with a package."""

    def __init__(self, device: str = "cpu"):
        from avfmae.data.mtcnn import MTCNN

        self.find = MTCNN(SMALLEST, device)

    def __call__(self, frames: Sequence[np.ndarray]) -> list[list[Face]]:
        return [
            [Face(tuple(box.tolist()), float(score), marks) for box, score, marks in zip(*found, strict=True)]
            for found in self.find(frames)
        ]


def chosen_detector(name: str) -> str:
    """The name, or for ``"auto"`` that of the best detector that is here: ``"mtcnn"``, or ``"haar"``, which it says in a line."""
    if name != "auto":
        return name
    from avfmae.data.mtcnn import is_installed

    if is_installed():
        return "mtcnn"
    console.print("faces are found by haar, which loses turned ones; for mtcnn: pip install 'avfmae[faces]'", highlight=False)
    return "haar"


@lru_cache(maxsize=2)
def make_detector(name: str, model: str | None = None, device: str = "cpu") -> Detector | None:
    """The detector of a name: ``"mtcnn"``, ``"haar"``, ``"yunet"`` with its model's path, or ``"precropped"``, which is none.

    ``device``: where mtcnn runs.

    Raises:
        RuntimeError, ValueError, FileNotFoundError: what the detector needs is not there.
    """
    if name == "yunet":
        if model is None:
            raise ValueError("detector: 'yunet' needs its model; give it with --yunet FILE.onnx")
        return YuNetDetector(Path(model))
    return {"mtcnn": lambda: MTCNNDetector(device), "haar": HaarDetector, "precropped": lambda: None}[name]()


@dataclass
class Track:
    """Detections of one face, by frame number."""

    faces: dict[int, Face]

    def area(self) -> float:
        return float(np.median([f.box[2] * f.box[3] for f in self.faces.values()]))

    def box(self) -> tuple[float, float, float, float]:
        """The median box."""
        return tuple(np.median([f.box for f in self.faces.values()], axis=0).tolist())


def detect(detector: Detector, frames: Sequence[np.ndarray]) -> list[list[Face]]:
    """The faces of (H, W, 3) frames of one size, which are scaled down for it to LARGEST_SIDE."""
    scale = min(1.0, LARGEST_SIDE / max(frames[0].shape[:2]))
    if scale < 1:
        frames = [cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) for frame in frames]
    return [
        [Face(tuple(v / scale for v in f.box), f.score, None if f.landmarks is None else f.landmarks / scale) for f in found]
        for found in detector(frames)
    ]


def link(tracks: list[Track], number: int, found: Sequence[Face], most: int) -> None:
    """Adds the faces of a frame to the tracks that they overlap, last seen at most ``most`` frames before; others begin one."""
    recent = [t for t in tracks if number - max(t.faces) <= most]
    latest = [t.faces[max(t.faces)].box for t in recent]
    pairs = [(iou(box, f.box), i, k) for i, box in enumerate(latest) for k, f in enumerate(found)]
    linked: set[int] = set()
    for overlap, i, k in sorted(pairs, reverse=True):  # best first; a face and a track are linked once
        if overlap >= LINK and number not in recent[i].faces and k not in linked:
            recent[i].faces[number] = found[k]
            linked.add(k)
    tracks += [Track({number: face}) for k, face in enumerate(found) if k not in linked]


def find_tracks(frames: Iterable[np.ndarray], detector: Detector, every: int) -> list[Track]:
    """All faces of (H, W, 3) frames, looked for in each ``every``-th one and linked by overlap."""
    tracks: list[Track] = []
    numbered = ((number, frame) for number, frame in enumerate(frames) if number % every == 0)
    while some := list(islice(numbered, AT_ONCE)):
        for (number, _), found in zip(some, detect(detector, [frame for _, frame in some]), strict=True):
            link(tracks, number, found, 5 * every)
    return tracks


def choose(tracks: list[Track], by: str) -> Track | None:
    """The ``"largest"`` face, or the most ``"persistent"`` one: seen most often, where large ones count more."""
    if not tracks:
        return None
    if by == "largest":
        often = max(len(t.faces) for t in tracks)
        return max((t for t in tracks if len(t.faces) >= often / 4), key=Track.area)  # one false alarm is no face
    return max(tracks, key=lambda t: len(t.faces) * t.area() ** 0.5)


def smooth_squares(track: Track, frames: int, margin: float, follow: bool) -> np.ndarray:
    """The square around the face in every frame: (frames, 3) centre x, centre y, side.

    The side is the same in all frames, the median one with ``margin`` of it on each side: a side that breathes would show the
    model motion that nobody made. The centre stands still too, or ``follow``s the face, smoothed by a Hann window.
    """
    x, y, width, height = track.box()
    side = max(width, height) * (1 + 2 * margin)
    centres = np.tile([x + width / 2, y + height / 2], (frames, 1))
    if follow and len(track.faces) > 1:
        seen = sorted(track.faces)
        points = np.array([[f.box[0] + f.box[2] / 2, f.box[1] + f.box[3] / 2] for f in (track.faces[n] for n in seen)])
        weights = np.hanning(SMOOTHED + 2)[1:-1] / np.hanning(SMOOTHED + 2).sum()
        for axis in range(2):
            path = np.interp(np.arange(-(SMOOTHED // 2), frames + SMOOTHED // 2), seen, points[:, axis])
            centres[:, axis] = np.convolve(path, weights, "valid")
    return np.column_stack([centres, np.full(frames, side)])


def square_warps(squares: np.ndarray, frame_size: tuple[int, int], size: int) -> Iterator[np.ndarray]:
    """For each frame of (H, W) the (2, 3) map from the stored picture to its square, which is moved inside the frame."""
    height, width = frame_size
    for x, y, side in squares:
        side = min(side, height, width)
        left, top = np.clip(x - side / 2, 0, width - side), np.clip(y - side / 2, 0, height - side)
        yield np.array([[side / size, 0, left], [0, side / size, top]])


def landmark_warps(track: Track, frames: int, size: int, margin: float) -> Iterator[np.ndarray]:
    """For each frame the (2, 3) map that rotates and scales it so that the landmarks' interpolated positions fall on TEMPLATE.

    With a margin of 0.3 the template fills the middle 1/1.6 of the picture, as the box does in a crop without landmarks.
    """
    seen = sorted(n for n, f in track.faces.items() if f.landmarks is not None)
    points = np.stack([track.faces[n].landmarks for n in seen]).reshape(len(seen), 10)
    paths = np.stack([np.interp(np.arange(frames), seen, column) for column in points.T], 1)
    target = ((TEMPLATE - 0.5) / (1 + 2 * margin) + 0.5) * size
    for row in paths:
        yield similarity(target, row.reshape(5, 2))


def similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The (2, 3) rotation, scaling and shift that brings (n, 2) points nearest to others, in the least squares."""
    a, b = source.mean(0), target.mean(0)
    s, t = source - a, target - b
    cos, sin = (s * t).sum(), (s[:, 0] * t[:, 1] - s[:, 1] * t[:, 0]).sum()
    turn = np.array([[cos, -sin], [sin, cos]]) / (s * s).sum()
    return np.column_stack([turn, b - turn @ a])


def warp(frame: np.ndarray, to_frame: np.ndarray, size: int) -> np.ndarray:
    """A size × size picture whose place p shows the frame's place ``to_frame`` · (p, 1), places being pixels' edges.

    Pictures that shrink are averaged down by whole steps before, so that nothing aliases.
    """
    scale = np.hypot(*to_frame[:, 0])
    step = int(scale)
    if step > 1:
        height, width = (n // step for n in frame.shape[:2])
        frame = cv2.resize(frame[: height * step, : width * step], (width, height), interpolation=cv2.INTER_AREA)
        to_frame = to_frame / step
    matrix = to_frame.copy()
    matrix[:, 2] += to_frame[:, :2] @ [0.5, 0.5] - 0.5  # OpenCV's places are pixels' centres
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(frame, matrix, (size, size), flags=flags, borderMode=cv2.BORDER_REPLICATE)
