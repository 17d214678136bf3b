"""A camera's windows as they come: what is kept is as long as a window, however long it runs."""

import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from itertools import count

import cv2
import numpy as np

from avfmae.data.clip import Clip
from avfmae.data.config import DataConfig
from avfmae.data.dataset import sample_window
from avfmae.data.faces import Detector, Track, detect
from avfmae.data.sources import NOMINAL_FPS, MediaError, Source, VideoInfo
from avfmae.inference.predictor import Prediction, Predictor, Shown
from avfmae.inference.stream import LARGEST_KEPT, LOST, Cuts, Face, Seen, ahead, link_faces

AHEAD = 4  # frames that wait at most; a camera drops those for which there is no time


class Camera(Source):
    """Pictures without sound. Seconds are counted from the first frame.

    Args:
        path: the number of a camera, or the address of a stream or the name of a file that OpenCV opens.
    """

    def __init__(self, path: str):
        super().__init__(path)
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # our own error says what is wrong
        self.is_device = path.isdecimal()
        self.capture = cv2.VideoCapture(int(path) if self.is_device else path)
        if not self.capture.isOpened():
            there = "is it plugged in, and may this user read it?"
            if self.is_device and sys.platform == "linux":
                there = f"is /dev/video{path} there, and may this user read it?"
            raise MediaError(f"camera {path}", f"cannot be opened; {there}")

    @property
    def info(self) -> VideoInfo:
        return VideoInfo(np.zeros(1), 0.0, NOMINAL_FPS, has_audio=False)

    def frames(self, numbers, arena=None):
        raise NotImplementedError("a camera's frames are gone when they have been shown")

    def stream(self) -> Iterator[tuple[float, np.ndarray]]:
        """(seconds, (H, W, 3) RGB) until the camera is unplugged or the stream ends."""
        begun, last = None, -1.0
        try:
            while True:
                is_there, frame = self.capture.read()
                if not is_there:
                    return
                now = time.monotonic() if self.is_device else self.capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
                begun = now if begun is None else begun
                if now - begun > last:  # stamps may repeat
                    last = now - begun
                    yield last, frame[..., ::-1]
        finally:
            self.capture.release()


def live_windows(
    frames: Iterator[tuple[float, np.ndarray]], path: str, length: int, data: DataConfig, step: float | None,
    detector: Detector | None, every: int, times: dict[int, float],
) -> Iterator[Seen]:  # fmt: skip
    """Windows of frames that come one by one. None crosses a cut; the last one of a shot that is too short for one is left out.

    Args:
        frames: (seconds, picture). length: frames of a window. step: seconds from one window to the next; None: half a window.
        times: is filled with the seconds of the frames that are kept, by number.
    """
    seconds = length * data.stride / NOMINAL_FPS
    kept: deque[np.ndarray] = deque()
    faces: list[Face] = []
    first, begin, cuts = 0, 0.0, Cuts()  # the number of the first frame that is kept; when the next window begins
    for number, (now, frame) in zip(count(), ahead(frames, AHEAD), strict=False):
        scale = min(1.0, LARGEST_KEPT / max(frame.shape[:2]))
        if scale < 1:
            frame = np.asarray(cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA))
        if cuts.is_new(frame):
            kept.clear()
            times.clear()
            first, begin, faces = number, now, []
        kept.append(frame)
        times[number] = now
        if detector is not None and number % every == 0:
            link_faces(faces, number, detect(detector, [frame])[0], LOST * every)
        while first < number and times[first] < begin - 1e-3:
            kept.popleft()
            del times[first]
            first += 1
        if times[first] < begin - 1e-3 or now - times[first] + 1.5 / NOMINAL_FPS < seconds:
            continue
        stamps = np.array([times[n] for n in range(first, number + 1)])
        fps = (len(stamps) - 1) / max(stamps[-1] - stamps[0], 1e-3)
        window = sample_window(VideoInfo(stamps, stamps[0], fps, False), Clip(0, path), 0.0, length, data, spread=True)
        pictures = np.stack([kept[n] for n in window.frames])
        last = first + int(np.searchsorted(stamps, window.end - 1e-3))
        looks = None if detector is None else sum(n % every == 0 for n in range(first, last))
        mine = [(face, {n - first: f for n, f in face.faces.items() if first <= n < last}) for face in faces]
        tracks = [(face, Track(found)) for face, found in mine if found]
        yield Seen(replace(window, frames=window.frames + first), pictures, tracks, looks, first, last, scale)
        begin = times[first] + (step or seconds / 2)
        for face in faces:
            face.faces = {n: found for n, found in face.faces.items() if n >= first - LOST * every}
        faces = [face for face in faces if face.faces]


def predict_camera(predictor: Predictor, camera: Camera, result: Prediction) -> Iterator[list[dict]]:
    """The rows of one window after the other. The result keeps the faces alone; their boxes and pictures are those since the row
    before.

    Raises:
        ValueError: the model does not look.
    """
    cfg = predictor.model.cfg
    if "video" not in cfg.modalities:
        raise ValueError("camera: gives pictures, but the model only hears")
    times: dict[int, float] = {}
    shown = Shown(result, times.__getitem__)
    args = (cfg.video.size[0], predictor.data, predictor.step, predictor.detector, predictor.every, times)
    for seen in live_windows(camera.stream(), camera.path, *args):
        predictor.run(predictor.rows(camera, seen, shown, result), result)
        rows, result.rows = result.rows, []
        yield rows
        for face in result.faces:
            face.boxes.clear()
            face.thumbnail = np.zeros((0, 0, 3), np.uint8)
