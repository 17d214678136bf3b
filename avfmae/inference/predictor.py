"""``avfmae.Predictor``: what a fine-tuned model says of a video, window by window and face by face."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import cv2
import numpy as np
import torch

from avfmae.checkpoints import push_to_hub, read_about, save_pretrained, weights_file
from avfmae.data import augment, faces
from avfmae.data.audio import SHORTEST, model_inputs, padded
from avfmae.data.clip import Clip
from avfmae.data.config import SAMPLE_RATE, DataConfig
from avfmae.data.dataset import Window, frame_range
from avfmae.data.sources import MediaError, Source, open_clip
from avfmae.extras import need
from avfmae.inference.finetuned import load_finetuned
from avfmae.inference.stream import Seen, Windows, read_sound_windows, read_windows
from avfmae.models.finetuning import AVFMAEForFinetuning
from avfmae.tasks.interface import Task
from avfmae.tasks.predictions import said
from avfmae.training.precision import compute_dtype

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SEEN = 0.1  # least share of a window's looks in which the one face is found
OFTEN = 0.3  # and in which each of several is
THUMBNAIL = 112  # pixels
ALIGNED = ("mtcnn", "yunet")  # detectors that give landmarks
DETECTORS = (*ALIGNED, "haar")
Given = tuple[dict[str, Any], np.ndarray | None, np.ndarray | None]  # a row, and its frames and sound


@dataclass
class FaceOfVideo:
    """A face that was followed through a shot.

    Attributes:
        number: as in the rows. thumbnail: (112, 112, 3) uint8. first, last: seconds between which it is shown.
        boxes: (seconds, (x, y, width, height) in pixels of the frame) of each time that it was found.
    """

    number: int
    thumbnail: np.ndarray
    first: float
    last: float
    boxes: list[tuple[float, tuple[float, float, float, float]]] = field(default_factory=list)


@dataclass
class Prediction:
    """What a model says of one video. Seconds are counted from its beginning, as players show them.

    Attributes:
        video: its path.
        rows: one a window and face: ``start``, ``end``, ``face`` (its number), ``x``, ``y``, ``w``, ``h`` (its box), then what
            the task predicts, then ``note``: what is odd. Where nothing can be predicted, the note says why.
        columns: the names of the numbers that the task predicts.
        faces: those that the rows name. notes: what is odd about the video.
    """

    video: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    faces: list[FaceOfVideo] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def frame(self) -> Any:
        """The rows as a pandas DataFrame (``pip install 'avfmae[predict]'``)."""
        return need("pandas", "predict", "Prediction.frame").DataFrame(self.rows)

    def plot(self) -> "Figure":
        """A timeline: what is predicted, a panel a face."""
        from avfmae.viz.timeline import timeline

        return timeline(self.rows, self.columns, {f.number: f.thumbnail for f in self.faces}, Path(self.video).name)

    def mean(self, face: int | None = None) -> dict[str, float]:
        """The mean over windows of each number that is predicted, of one face or of all."""
        rows = [r for r in self.rows if self.columns and r.get(self.columns[0]) is not None and face in (None, r["face"])]
        return {name: float(np.mean([r[name] for r in rows])) for name in self.columns} if rows else {}


class Predictor:
    """Predicts what a fine-tuned model was trained for, in windows that slide over a video.

    Args:
        model: fine-tuned, as :func:`avfmae.inference.finetuned.load_finetuned` gives it with its task and data.
        task: what its outputs mean. data: how clips are read.
        detector: of faces: ``"auto"``, ``"mtcnn"``, ``"haar"``, ``"yunet"`` with its model's file in ``yunet``; or
            ``"precropped"``: the frames are faces.
        aligned: whether faces are turned and scaled by their landmarks, as those of training were.
        size: of the square pictures that training clips were stored in; None: they were cut out of the file's frames.
        margin: room around the face, in shares of its side; None: as in training.
        every: frames from one in which faces are looked for to the next.
        faces: ``"main"``: in each window the face that is seen most; ``"all"``: all that are often seen.
        step: seconds from one window to the next; None: half a window.
        batch: windows and faces in one pass.
        device: None: a GPU if there is one.
        precision: ``"float32"``, ``"bf16"`` or ``"auto"``, as in training.
    """

    def __init__(
        self, model: AVFMAEForFinetuning, task: Task, data: DataConfig, *, detector: str = "auto", yunet: str | None = None,
        aligned: bool = False, size: int | None = None, margin: float | None = None, follow: bool = False, every: int = 5,
        faces: Literal["main", "all"] = "main", step: float | None = None, batch: int = 8, device: str | None = None,
        precision: str = "float32",
    ):  # fmt: skip
        if faces not in ("main", "all"):
            raise ValueError(f"faces: got {faces!r}, expected 'main' or 'all'")
        if step is not None and not 0 < step < np.inf:
            raise ValueError(f"step: got {step}, expected seconds above 0")
        for name, value, least in (("every", every, 1), ("batch", batch, 1), ("margin", margin or 0, 0)):
            if not least <= value < np.inf:
                raise ValueError(f"{name}: got {value}, expected at least {least}")
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model, self.task, self.data = model.eval().to(self.device), task, data
        self.aligned, self.size, self.margin, self.follow = aligned, size, data.face_margin if margin is None else margin, follow
        self.every, self.which, self.step, self.batch = every, faces, step, batch
        self.about: dict[str, Any] = {"task": task.name, "precision": precision}
        self.about |= {**task.about(), "data": asdict(data)}
        self.dtype = compute_dtype(precision, self.device)
        self.detector = None
        if "video" in model.cfg.modalities:
            self.detector = _detector(detector, yunet, str(self.device))

    @classmethod
    def from_pretrained(cls, path: str | Path, **options: Any) -> Self:
        """The predictor of a fine-tuned model: its weights, the folder of the run that wrote them, a folder that
        :meth:`save_pretrained` wrote, or ``owner/name`` on Hugging Face's hub.

        Args:
            options: see the class.

        Raises:
            FileNotFoundError, ValueError: there is no fine-tuned model.
        """
        path = weights_file(path)
        tuned = load_finetuned(path)
        options = {"precision": tuned.precision} | options
        if (how := tuned.preparation) is not None:  # as training's faces were cut; where boxes were given, faces are found here
            seen: dict[str, Any] = {name: getattr(how, name) for name in ("margin", "follow", "every", "size", "yunet")}
            seen |= {"aligned": how.detector in ALIGNED, "detector": how.detector if how.detector in DETECTORS else "auto"}
            options = seen | options
        predictor = cls(tuned.model, tuned.task, tuned.data, **options)
        predictor.about = {name: value for name, value in read_about(path).items() if name != "config"}
        return predictor

    def save_pretrained(self, folder: str | Path) -> Path:
        """Writes a folder that :meth:`from_pretrained` reads: ``config.json``, ``model.safetensors`` and a model card."""
        return save_pretrained(self.model, folder, **self.about)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Uploads such a folder to Hugging Face's hub as ``owner/name``; see the models' method."""
        return push_to_hub(self.model, repo_id, self.about, **options)

    def __call__(self, video: str | Path) -> Prediction:
        """Predicts a whole video.

        Raises:
            MediaError: it cannot be read, or lacks what the model needs.
        """
        result = Prediction(str(video))
        for _ in self.stream(video, result):
            pass
        return result

    def stream(self, video: str | Path, result: Prediction) -> Iterator[float]:
        """Predicts a video window by window, and adds to ``result``. Gives the share of the video that is done.

        What is damaged midway ends the prediction there; a note says so.
        """
        source = open_clip(str(video), self.data.sound_track)
        source.check_serves(self.model.cfg.modalities)
        info, clip = source.info, Clip(0, str(video))
        low, high = frame_range(info, clip)
        windows = Windows(info, clip, self.model.cfg.video.size[0], self.data, self.step)
        if "video" not in self.model.cfg.modalities:
            seen = read_sound_windows(windows, low, high)
        else:
            every = min(self.every, max(1, int(windows.seconds * info.fps / 2)))  # twice a window at least, at low rates too
            seen = read_windows(source, windows, low, high, None if source.is_cropped else self.detector, every)
        waiting: list[Given] = []
        shown = Shown(result, lambda number: float(info.times[number] - info.start))
        for window in _until_damaged(seen, result):
            waiting += self.rows(source, window, shown, result)
            if len(waiting) >= self.batch:
                self.run(waiting, result)
            yield (window.last - low) / (high - low)
        self.run(waiting, result)
        result.notes += sorted(source.flags)
        if not any(result.columns and row.get(result.columns[0]) is not None for row in result.rows):
            result.notes.append("nothing is predicted: no face is found" if result.rows else "nothing is predicted")

    def rows(self, source: Source, seen: Seen, shown: "Shown", result: Prediction) -> list[Given]:
        """Adds the rows of a window to the result; gives those of which something can be predicted."""
        sound, note = self.sound(source, seen.window)
        span, given = {name: getattr(seen.window, name) - source.info.start for name in ("start", "end")}, []
        for face, box, picture, words in self.pictures(seen, shown):
            row = span | {"face": face} | dict(zip("xywh", box or (None,) * 4, strict=True))
            row = {k: round(float(v), 3) if isinstance(v, float) else v for k, v in row.items()}
            row["note"] = "; ".join(filter(None, (*words, note)))
            result.rows.append(row)
            if not ("video" in self.model.cfg.modalities and picture is None):
                given.append((row, picture, sound))
        return given

    def sound(self, source: Source, window: Window) -> tuple[np.ndarray | None, str]:
        """The window's sound, with silence where it has none, and a word on that."""
        if "audio" not in self.model.cfg.modalities:
            return None, ""
        seconds = window.seconds if self.data.missing_audio == "silence" else window.end - window.start  # as in training
        whole, note = max(SHORTEST, round(seconds * SAMPLE_RATE)), ""
        try:
            found = source.sound(window.start, window.end) if source.info.has_audio else np.zeros(0, np.float32)
        except MediaError as error:
            found, note = np.zeros(0, np.float32), error.reason
        if len(found) < 0.9 * whole:
            note = note or (f"sound in {len(found) / whole:.0%} of the window" if len(found) else "no sound: silence is heard")
        return np.pad(found, (0, max(0, whole - len(found)))), note

    def pictures(self, seen: Seen, shown: "Shown") -> Iterable[tuple[int | None, tuple | None, np.ndarray | None, list[str]]]:
        """(number, box, frames, notes) of each face in a window; a single one without frames where there is none."""
        words = ["shorter than a window"] if len(set(seen.window.frames.tolist())) < len(seen.window.frames) else []
        if seen.frames is None:
            return [(None, None, None, words)]
        if self.detector is None or seen.looks is None:
            whole = augment.view_box((0, 0, *seen.frames.shape[2:0:-1]), 0, 1)
            return [(None, None, self.resized(seen.frames, whole), words)]
        found = [(face, track) for face, track in seen.faces if len(track.faces) >= max(1, SEEN * seen.looks)]
        if self.which == "main":
            best = faces.choose([track for _, track in found], "persistent")
            found = [(face, track) for face, track in found if track is best]
        else:
            found = [(face, track) for face, track in found if len(track.faces) >= OFTEN * seen.looks]
        if not found:
            return [(None, None, None, [*words, "no face"])]
        rows = []
        for face, track in found:
            share = len(track.faces) / seen.looks
            picture = self.cut(seen, track)
            number = shown.add(face, seen, track, picture)
            box = tuple(v / seen.scale for v in track.box())
            rows.append((number, box, picture, [*words, *([f"face in {share:.0%} of the window"] if share < 0.5 else [])]))
        return sorted(rows, key=lambda row: row[0])

    def cut(self, seen: Seen, track: faces.Track) -> np.ndarray:
        """A face's frames in the model's size, cut as those of training were."""
        assert seen.frames is not None
        frames, count = seen.frames, seen.last - seen.first
        height, width = frames.shape[1:3]
        aligned = self.aligned and any(f.landmarks is not None for f in track.faces.values())
        if not aligned and not self.follow and self.size is None:
            return self.resized(frames, augment.face_box(track.box(), (height, width), self.margin))
        stored = self.size or self.model.cfg.video.size[1]
        if aligned:
            warps = faces.landmark_warps(track, count, stored, self.margin)
        else:
            squares = faces.smooth_squares(track, count, self.margin, self.follow)
            warps = faces.square_warps(squares, (height, width), stored)
        maps = list(warps)
        cut = np.stack([
            faces.warp(frame, maps[number - seen.first], stored)
            for frame, number in zip(frames, seen.window.frames.tolist(), strict=True)
        ])  # fmt: skip
        return self.resized(cut, (0, 0, stored, stored))

    def resized(self, frames: np.ndarray, box: augment.Box) -> np.ndarray:
        """What a box of (T, H, W, 3) frames shows, in the model's size."""
        _, height, width = self.model.cfg.video.size
        return augment.crop(frames, box, (height, width), "bilinear")

    @torch.no_grad()
    def run(self, waiting: list[Given], result: Prediction) -> None:
        """Predicts the rows that wait, and empties the list."""
        for k in range(0, len(waiting), self.batch):
            part = waiting[k : k + self.batch]
            inputs = self.inputs([picture for _, picture, _ in part], [sound for _, _, sound in part])
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                outputs = self.model(*inputs).logits.float().cpu().numpy()
            for (row, _, _), output in zip(part, outputs, strict=True):
                values = said(self.task, Clip(0, ""), output)
                result.columns = [name for name, value in values.items() if isinstance(value, float)]
                note = row.pop("note")
                row.update(values)
                row["note"] = note
        waiting.clear()

    def inputs(
        self, pictures: Sequence[np.ndarray | None], sounds: Sequence[np.ndarray | None]
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """The model's inputs, (B, T, H, W, 3) and (B, 1, frames, mels), on its device."""
        video = audio = None
        if "video" in self.model.cfg.modalities:
            video = torch.from_numpy(np.stack([p for p in pictures if p is not None])).to(self.device)
        if "audio" in self.model.cfg.modalities:
            sound, lengths = padded([s for s in sounds if s is not None])
            audio = model_inputs(sound.to(self.device), lengths.to(self.device), self.model.cfg.audio.size[0])
        return video, audio


class Shown:
    """The faces of a video, by number, as they are met. ``seconds``: when a frame is shown, by its number."""

    def __init__(self, result: Prediction, seconds: Callable[[int], float]):
        self.result, self.seconds = result, seconds

    def add(self, face: Any, seen: Seen, track: faces.Track, picture: np.ndarray) -> int:
        """Numbers a face when it is first shown, and notes where it is found."""
        mine = self.result.faces
        if not face.number:
            face.number = len(mine) + 1
            thumbnail = cv2.resize(picture[len(picture) // 2], (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_LINEAR)
            mine.append(FaceOfVideo(face.number, np.asarray(thumbnail), self.seconds(seen.first), 0.0))
        known = mine[face.number - 1]
        known.last = self.seconds(seen.last - 1)
        done = known.boxes[-1][0] if known.boxes else -np.inf
        for number in sorted(track.faces):
            if (time := self.seconds(seen.first + number)) > done:
                x, y, w, h = (round(v / seen.scale, 1) for v in track.faces[number].box)
                known.boxes.append((time, (x, y, w, h)))
        return face.number


def _detector(name: str, yunet: str | None, device: str) -> faces.Detector | None:
    return faces.make_detector(faces.chosen_detector(name), yunet, device)


def _until_damaged(seen: Iterator[Seen], result: Prediction) -> Iterator[Seen]:
    """The windows up to where the video is damaged, which a note says; MediaError where that is before the first."""
    begun = False
    try:
        for window in seen:
            begun = True
            yield window
    except MediaError as error:
        if not begun:
            raise
        result.notes.append(f"ends early: {error.reason}")
