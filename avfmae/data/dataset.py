"""From clips to batches: which frames, which sound, which masks; all of it a function of a seed.

Nothing here depends on the number of workers or processes: a clip's random numbers are keyed by (seed, epoch, clip id).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from avfmae.config import ModelConfig
from avfmae.data import augment
from avfmae.data.arena import LARGEST_WHOLE, Arena
from avfmae.data.audio import SHORTEST, padded
from avfmae.data.batch import Bad, Batch, Raw
from avfmae.data.clip import Clip
from avfmae.data.config import SAMPLE_RATE, DataConfig, Preparation
from avfmae.data.cropping import FaceClip
from avfmae.data.sources import NOMINAL_FPS, MediaError, Source, VideoInfo, open_clip, shard_numbers
from avfmae.data.table import ClipTable
from avfmae.masking import DualMask
from avfmae_kernels import random_bits

REPLACEMENT = 16  # a stream of random numbers; 0 to 3 are the masks', 17 is the sampler's
ATTEMPTS = 16  # replacements that are tried for one bad clip


@dataclass(frozen=True)
class Window:
    """Frame numbers, and the time span that they stand for on the file's clock.

    ``end`` is the clip's own, where that is before the window's; ``seconds`` is the whole window's length.
    """

    frames: np.ndarray
    start: float
    end: float
    seconds: float


def frame_range(info: VideoInfo, clip: Clip) -> tuple[int, int]:
    """The first frame of a clip in its file, and the one after its last.

    Raises:
        MediaError: no frame lies between the clip's start and end.
    """
    low = 0 if clip.start is None else int(np.searchsorted(info.times, info.start + clip.start - 1e-3))
    high = len(info.times) if clip.end is None else int(np.searchsorted(info.times, info.start + clip.end - 1e-3))
    if high <= low:
        raise MediaError(
            clip.path, f"has no frames between {clip.start or 0:.2f} and {np.inf if clip.end is None else clip.end:.2f} s"
        )
    return low, high


def sample_window(info: VideoInfo, clip: Clip, position: float, frames: int, data: DataConfig, spread: bool) -> Window:
    """Chooses frames of a clip.

    Args:
        info: of the clip's file.
        position: 0 to 1, where in the clip's free time the window begins.
        frames: how many.
        spread: fine-tuning's way, frames spread evenly over the whole window; else every ``stride``-th from its start.

    Returns:
        The window; a clip shorter than it repeats its last frame.

    Raises:
        MediaError: no frame lies between the clip's start and end.
    """
    low, high = frame_range(info, clip)
    times = info.times[low:high]
    if data.sampling == "uniform":
        numbers = np.linspace(0, len(times) - 1, frames).round().astype(int)
        end = float(times[-1] + 1 / info.fps)
        return Window(low + numbers, float(times[0]), end, end - float(times[0]))
    count = frames * data.stride  # frames at a constant rate; else 25ths of a second
    offsets = np.linspace(0, count - 1, frames).round().astype(int) if spread else np.arange(frames) * data.stride
    if is_constant(info):
        first = int(position * max(0, len(times) - count))
        numbers = first + offsets
        last = min(int(numbers[-1]), len(times) - 1)
        seconds = float(times[last] - times[first]) + (first + count - last) / info.fps
    else:  # the frames that are shown at these times
        lasts = float(times[-1] - times[0]) + 1 / info.fps
        first = int(np.searchsorted(times, times[0] + position * max(0.0, lasts - count / NOMINAL_FPS), "right")) - 1
        numbers = np.searchsorted(times, times[first] + offsets / NOMINAL_FPS + 1e-4, "right") - 1
        seconds = count / NOMINAL_FPS
    start, stop = float(times[first]), float(times[-1]) + 1 / info.fps  # what sounds behind the last frame is not the clip's
    return Window(low + np.minimum(numbers, len(times) - 1), start, min(start + seconds, stop), seconds)


def is_constant(info: VideoInfo) -> bool:
    """Whether frames follow one another at 23 to 31 a second, each less than two frames from where an even clock has it."""
    even = np.linspace(info.times[0], info.times[-1], len(info.times))
    return 23 <= info.fps <= 31 and bool(np.abs(info.times - even).max() < 2 / info.fps)


def read_window_audio(source: Source, window: Window, missing: str) -> np.ndarray:
    """The 16 kHz mono sound of a window. Where the source has none, there is silence if ``missing`` is ``"silence"``.

    Raises:
        MediaError: there is no sound, or too little for one spectrum, or it is damaged.
    """
    waveform = source.sound(window.start, window.end) if source.info.has_audio else np.zeros(0, np.float32)
    if missing == "silence":
        length = max(SHORTEST, round(window.seconds * SAMPLE_RATE))
        return np.pad(waveform, (0, max(0, length - len(waveform))))
    if len(waveform) < SHORTEST:
        what = f"has {len(waveform)} samples of sound at {window.start:.2f} s" if source.info.has_audio else "has no audio track"
        raise MediaError(source.sound_path, f"{what} (missing_audio = 'silence' would train on silence)")
    return waveform


@dataclass
class Sample:
    """One clip as it was read, before it is put into a batch.

    Attributes:
        windows: of frames, each (T, H, W, 3) uint8, V of them (1 in training); None where the model does not look. Large ones are
            kept as their crops, in the model's size.
        boxes: of each window's crops, in order; None: they are crops.
        sounds: (samples,) float32 of each window, or None.
        draw: what training with labels does to it. shift, gain: what pre-training does to its sound.
    """

    clip: Clip
    windows: list[np.ndarray] | None
    boxes: list[augment.Box] | None
    sounds: list[np.ndarray] | None
    draw: augment.Draw | None = None
    shift: int = 0
    gain: float = 1.0
    flags: frozenset[str] = frozenset()  # what is odd about the clip


class ClipDataset:
    """Reads clips and draws what will be done to them; indexed by (epoch, position in the list).

    Args:
        clips: the list. cfg: the model's sizes. data: how to read.
        purpose: ``"pretrain"`` (multi-scale crop, roll-mag), ``"train"`` (random crop, RandAugment, flip, erasing) or
            ``"evaluate"`` (segments × crops, nothing random, nothing replaced).
        seed: of every random choice.
        target: gives a clip's label as a class number or a vector; None: no labels.
        modalities: what to read; None: what the model sees.
        preparation: how the clips that the model was trained on were cut to faces: raw ones are cut likewise. None: a clip's own
            box is taken, or else the whole frame.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        cfg: ModelConfig,
        data: DataConfig,
        purpose: Literal["pretrain", "train", "evaluate"],
        seed: int = 0,
        target: Callable[[Clip], int | list[float]] | None = None,
        modalities: Sequence[str] | None = None,
        preparation: Preparation | None = None,
    ):
        if not clips:
            raise ValueError("clips: the list is empty")
        self.clips, self.cfg, self.data, self.purpose, self.seed = ClipTable.of(clips), cfg, data, purpose, seed
        self.target, self.preparation = target, preparation
        self.modalities = cfg.modalities if modalities is None else tuple(modalities)
        self.fatal: dict[int, str] = {}  # clips at which a process hung or died, and why
        self.arena: Arena | None = None  # of the batch that is being read

    def __len__(self) -> int:
        return len(self.clips)

    def shards(self) -> np.ndarray | None:
        """(clips,) the number of each clip's shard; None where not all clips lie in shards."""
        if shard_numbers([self.clips[0].path]) is None:
            return None
        paths, folders = self.clips.folders()
        numbers = shard_numbers(paths)
        return None if numbers is None else numbers[folders]

    def note(self, clip: int) -> None:
        """A hook: is called with a clip's id before the clip is read. Watched processes put theirs in its place."""

    def empty(self, shape: tuple[int, ...]) -> np.ndarray:
        """A hook: gives memory for a batch's frames. Processes that share memory put theirs in its place."""
        return np.empty(shape, np.uint8)

    def batch(self, items: Sequence[tuple[int, int]]) -> Batch:
        """The batch of (epoch, position)s."""
        segments = self.data.segments if self.purpose == "evaluate" else 1
        self.arena = Arena(len(items) * segments, self.empty)
        return self.collate([self[item] for item in items])

    def __getitem__(self, item: tuple[int, int]) -> tuple[Sample | None, list[Bad]]:
        """The clip that was read, in place of those that are bad.

        None where no replacement was readable either, and in evaluation, which replaces nothing.
        """
        epoch, position = item
        wanted, bad = self.clips[position], []
        for attempt in range(ATTEMPTS):
            clip = wanted
            if attempt:  # picture and sound together, the same one in every run
                bits = random_bits(self.seed, epoch, np.array([wanted.id]), REPLACEMENT, ATTEMPTS)[0, attempt]
                clip = self.clips[int(bits) % len(self.clips)]
            try:
                if clip.id in self.fatal:
                    raise MediaError(clip.path, self.fatal[clip.id])
                self.note(clip.id)
                return self.read(clip, epoch), bad
            except MediaError as error:
                bad.append(Bad(clip.id, error.path, error.reason))
                if self.purpose == "evaluate":
                    break
        return None, bad

    def read(self, clip: Clip, epoch: int) -> Sample:
        """The clip's windows and sounds, and what was drawn for it.

        Raises:
            MediaError: it cannot be read.
        """
        frames, how = self.cfg.video.size[0], self.preparation
        source = open_clip(clip, self.data.sound_track or (how and how.sound_track))
        info, raw = source.info, None
        if how is not None and not source.is_cropped and "video" in self.modalities:
            source = raw = FaceClip(source, clip, how, *frame_range(info, clip))
        face = None if source.is_cropped else clip.face
        if self.purpose == "evaluate":
            rng, segments, crops = None, self.data.segments, self.data.crops
            positions = [0.5] if segments == 1 else np.linspace(0, 1, segments).tolist()
        else:
            rng = np.random.Generator(np.random.Philox(key=[self.seed, epoch], counter=[0, 0, 0, clip.id]))
            positions, crops = [rng.random()], 1
        sample = Sample(clip, [] if "video" in self.modalities else None, [], [] if "audio" in self.modalities else None)
        for position in positions:
            window = sample_window(info, clip, position, frames, self.data, spread=self.purpose != "pretrain")
            if sample.sounds is not None:
                sample.sounds.append(read_window_audio(source, window, self.data.missing_audio))
            if sample.windows is not None:
                decoded = source.frames(window.frames, self.arena)
                face = face if raw is None or raw.is_cropped else raw.face
                boxes = [self.box(decoded, face, crop, rng) for crop in range(crops)]
                if decoded[0, ..., 0].size > LARGEST_WHOLE:
                    sample.windows += self.crops([decoded], boxes)
                    sample.boxes = None
                else:
                    sample.windows.append(decoded)
                    sample.boxes += boxes
        if self.purpose == "pretrain" and sample.sounds is not None:
            length = len(sample.sounds[0])
            sample.shift, sample.gain = int(rng.integers(length)) if self.data.roll else 0, float(rng.beta(10, 10) + 0.5)
        if self.purpose == "train" and sample.windows is not None:
            data = self.data
            sample.draw = augment.draw(rng, frames, self.cfg.video.size[1:], data.rand_augment, data.flip, data.erase)
        sample.flags = frozenset(source.flags | ({"no-sound"} if sample.sounds and not info.has_audio else set()))
        return sample

    def box(self, frames: np.ndarray, face: augment.Box | None, crop: int, rng: np.random.Generator | None) -> augment.Box:
        """What is seen of the frames: this purpose's crop, or evaluation's ``crop``-th view. ``face``: its box, or None."""
        margin = self.data.face_margin if self.preparation is None else self.preparation.margin
        within = augment.face_box(face, frames.shape[1:3], margin)
        if self.purpose == "evaluate":
            return augment.view_box(within, crop, self.data.crops)
        if self.purpose == "pretrain":
            return augment.multi_scale_box(within, rng, self.data.multi_scales)
        # The crop comes before RandAugment, on a tenth of the pixels, and not after it as in the released loader.
        return augment.random_resized_box(within, rng, self.data.crop_scale)

    def crops(self, windows: list[np.ndarray], boxes: list[augment.Box]) -> list[np.ndarray]:
        """Each window's boxes in the model's size, cropped here."""
        views, size = len(boxes) // len(windows), self.cfg.video.size[1:]
        return [augment.crop(windows[k // views], box, size, self.filter) for k, box in enumerate(boxes)]

    @property
    def filter(self) -> str:
        """Of this purpose's crops, as published."""
        return "bicubic" if self.purpose == "train" else "bilinear"

    def collate(self, samples: Sequence[tuple[Sample | None, list[Bad]]]) -> Batch:
        """One batch, without the clips that could not be read. Frames of one size are left whole, to be cropped on the device."""
        bad = [b for _, found in samples for b in found]
        read = [sample for sample, _ in samples if sample is not None]
        if not read:
            return Batch(None, None, None, None, [], bad=bad)
        raw = Raw(filter=self.filter, crops=self.data.crops if self.purpose == "evaluate" else 1)
        segments = self.data.segments if self.purpose == "evaluate" else 1
        if read[0].windows is not None:
            windows = [w for sample in read for w in sample.windows]
            if all(sample.boxes is not None for sample in read) and len({w.shape for w in windows}) == 1:
                whole = self.arena.memory if self.arena is not None and self.arena.holds(windows) else np.stack(windows)
                raw.frames = torch.from_numpy(whole)
                raw.boxes = torch.tensor([box for sample in read for box in sample.boxes], dtype=torch.float32)
            else:
                views = [s.windows if s.boxes is None else self.crops(s.windows, s.boxes) for s in read]
                raw.frames = torch.from_numpy(np.stack([view for several in views for view in several]))
            raw.draws = None if read[0].draw is None else [sample.draw for sample in read]
        if read[0].sounds is not None:
            raw.sound, raw.lengths = padded([sound for sample in read for sound in sample.sounds])
            if self.purpose == "pretrain":
                raw.shift, raw.gain = (
                    torch.tensor([sample.shift for sample in read]),
                    torch.tensor([sample.gain for sample in read]),
                )
        labels = None if self.target is None else torch.as_tensor(np.array([self.target(sample.clip) for sample in read]))
        if labels is not None and labels.is_floating_point():
            labels = labels.float()
        flags = {sample.clip.id: " ".join(sorted(sample.flags)) for sample in read if sample.flags}
        clips, views = [sample.clip.id for sample in read], segments * raw.crops
        return Batch(None, None, labels, None, clips, views, bad, raw=raw, flags=flags)


class PretrainDataset(ClipDataset):
    """Adds the masks, which belong to the epoch as well as to the clip."""

    def batch(self, items: Sequence[tuple[int, int]]) -> Batch:
        batch = super().batch(items)
        if batch.clips:
            batch.masks = DualMask.for_clips(self.cfg, batch.clips, self.seed, epoch=items[0][0])
        return batch
