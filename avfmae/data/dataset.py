"""From a manifest to batches: which clips, which frames, which sound, which masks; all of it a function of a seed.

Nothing here depends on the number of workers or processes: a clip's random numbers are keyed by (seed, epoch, clip id),
the order of clips by (seed, epoch), and each process takes its rows of each total batch.
"""

import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from avfmae.config import ModelConfig
from avfmae.data import augment
from avfmae.data.audio import SHORTEST, model_input, roll_mag
from avfmae.data.decode import probe, read_audio, read_frames
from avfmae.data.manifest import Clip
from avfmae.data.media import SAMPLE_RATE, MediaError, VideoInfo
from avfmae.masking import DualMask
from avfmae_kernels import random_bits

REPLACEMENT, ORDER = 16, 17  # streams of random numbers; 0 to 3 are the masks'
ATTEMPTS = 16  # replacements that are tried for one bad clip


@dataclass
class DataConfig:
    """How clips are read.

    Attributes:
        stride: frames between two sampled ones at 25 to 30 frames a second; other rates sample the same time span.
        sampling: ``"window"``: 16 frames from stride·16; ``"uniform"``: 16 frames spread over all of the clip, for
            micro-expressions of a few frames.
        face_margin: room around a manifest's face box, in shares of its side.
        roll: shift pre-training sound in time (the released code does not, in effect).
        multi_scales: shares of the short side that pre-training crops have.
        rand_augment: magnitude and number of operations for training with labels; 0 operations: none.
        crop_scale: area shares of the random crop for training with labels.
        flip: probability of a mirrored clip, for training with labels.
        erase: probability of an erased rectangle, for training with labels.
        missing_audio: ``"error"``: a clip without sound is a bad clip; ``"silence"``: it gets silence.
        max_bad_share: the run stops when more than this share of its clips is bad.
        segments: evaluation views in time.
        crops: evaluation views in space.
        workers: decoding processes; 0 decodes in the training process.
    """

    stride: int = 4
    sampling: Literal["window", "uniform"] = "window"
    face_margin: float = 0.3
    roll: bool = True
    multi_scales: tuple[float, ...] = (1.0, 0.875, 0.75, 0.66)
    rand_augment: tuple[float, int] = (7.0, 4)
    crop_scale: tuple[float, float] = (0.08, 1.0)
    flip: float = 0.5
    erase: float = 0.25
    missing_audio: Literal["error", "silence"] = "error"
    max_bad_share: float = 0.05
    segments: int = 2
    crops: int = 2
    workers: int = 2


@dataclass(frozen=True)
class Window:
    """Frame numbers, and the time span that they stand for on the file's clock."""

    frames: np.ndarray
    start: float
    end: float


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
    low = 0 if clip.start is None else int(np.searchsorted(info.times, info.start + clip.start - 1e-3))
    high = len(info.times) if clip.end is None else int(np.searchsorted(info.times, info.start + clip.end - 1e-3))
    if high <= low:
        raise MediaError(clip.path, f"has no frames between {clip.start or 0:.2f} and {clip.end or np.inf:.2f} s")
    if data.sampling == "uniform":
        numbers = np.linspace(low, high - 1, frames).round().astype(int)
        return Window(numbers, float(info.times[low]), float(info.times[high - 1] + 1 / info.fps))
    rate = 1.0 if 23 <= info.fps <= 31 else info.fps / 25
    length = frames * data.stride * rate  # of the window, in frames
    offsets = np.linspace(0, frames * data.stride - 1, frames).round() if spread else np.arange(frames) * data.stride
    first = low + int(position * max(0, high - low - length))
    numbers = np.round(first + offsets * rate).astype(int)
    start = float(info.times[first])
    end = start + length / info.fps
    if numbers[-1] < high:  # by the stamps, where the rate varies
        end = float(info.times[numbers[-1]]) + (length - offsets[-1] * rate) / info.fps
    if clip.end is not None:
        end = min(end, info.start + clip.end)
    return Window(np.minimum(numbers, high - 1), start, end)


def read_window_audio(clip: Clip, info: VideoInfo, window: Window, missing: str) -> np.ndarray:
    """The 16 kHz mono sound of a window, from the clip's file or its separate sound file."""
    if clip.audio_path is None and not info.has_audio:
        if missing == "silence":
            return np.zeros(max(SHORTEST, round((window.end - window.start) * SAMPLE_RATE)), np.float32)
        raise MediaError(clip.path, "has no audio track (missing_audio = 'silence' would train on silence)")
    if clip.audio_path is None:
        waveform = read_audio(clip.path, window.start, window.end)
    else:  # a separate file starts with the video's file
        waveform = read_audio(clip.audio_path, window.start - info.start, window.end - info.start)
    if len(waveform) < SHORTEST:
        raise MediaError(
            clip.audio_path or clip.path,
            f"has {len(waveform)} samples of sound at {window.start:.2f} s, too few for one spectrum",
        )
    return waveform


@dataclass(frozen=True)
class Bad:
    """A clip that was set aside."""

    id: int
    path: str
    reason: str


@dataclass
class Batch:
    """Clips on their way to the model.

    Attributes:
        video: (B, T, H, W, 3) uint8, or None where the model does not look; evaluation: B·views.
        audio: (B, 1, frames, mels) float32, or None.
        labels: (B,) int64 classes or (B, outputs) float32 values, or None in pre-training.
        masks: pre-training's.
        clips: ids of the clips that are in it.
        views: evaluation views a clip, consecutive in ``video`` and ``audio``.
        bad: clips that were to be in it and are not.
    """

    video: Tensor | None
    audio: Tensor | None
    labels: Tensor | None
    masks: DualMask | None
    clips: list[int]
    views: int = 1
    bad: list[Bad] = field(default_factory=list)

    def map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        """The same batch with ``function`` of every tensor."""
        fields = {name: getattr(self, name) for name in ("video", "audio", "labels")}
        masks = None if self.masks is None else self.masks.map(function)
        return replace(self, masks=masks, **{n: None if t is None else function(t) for n, t in fields.items()})

    def tensors(self) -> list[Tensor]:
        found: list[Tensor] = []
        self.map(lambda t: found.append(t) or t)
        return found

    def to(self, device: torch.device) -> "Batch":
        return self.map(lambda t: t.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        return self.map(Tensor.pin_memory)


class ClipDataset(Dataset):
    """Decodes and augments clips; indexed by (epoch, position in the list).

    Args:
        clips: the list. cfg: the model's sizes. data: how to read.
        purpose: ``"pretrain"`` (multi-scale crop, roll-mag), ``"train"`` (random crop, RandAugment, flip, erasing) or
            ``"evaluate"`` (segments × crops, nothing random, nothing replaced).
        seed: of every random choice.
        target: gives a clip's label as a class number or a vector; None: no labels.
        modalities: what to read.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        cfg: ModelConfig,
        data: DataConfig,
        purpose: Literal["pretrain", "train", "evaluate"],
        seed: int = 0,
        target: Callable[[Clip], int | list[float]] | None = None,
        modalities: Sequence[str] = ("video", "audio"),
    ):
        if not clips:
            raise ValueError("clips: the list is empty")
        self.clips, self.cfg, self.data, self.purpose, self.seed = list(clips), cfg, data, purpose, seed
        self.target, self.modalities = target, tuple(modalities)
        self.known_bad: dict[int, str] = {}  # of this worker

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, item: tuple[int, int]):
        """(clip, video, audio, bad): the clip that was read, in place of those in ``bad``.

        The first three are None where no replacement was readable either, and in evaluation, which replaces nothing.
        """
        epoch, position = item
        wanted, bad = self.clips[position], []
        for attempt in range(ATTEMPTS):
            clip = wanted
            if attempt:  # picture and sound together, the same one in every run
                bits = random_bits(self.seed, epoch, np.array([wanted.id]), REPLACEMENT, ATTEMPTS)[0, attempt]
                clip = self.clips[int(bits) % len(self.clips)]
            try:
                if clip.id in self.known_bad:
                    raise MediaError(clip.path, self.known_bad[clip.id])
                return clip, *self.read(clip, epoch), bad
            except MediaError as error:
                self.known_bad[clip.id] = error.reason
                bad.append(Bad(clip.id, error.path, error.reason))
                if self.purpose == "evaluate":
                    break
        return None, None, None, bad

    def read(self, clip: Clip, epoch: int) -> tuple[np.ndarray | None, np.ndarray | None]:
        """The clip's views: video (V, T, H, W, 3) uint8 and audio (V, 1, frames, mels) float32; V is 1 in training."""
        info, frames = probe(clip.path, "video" in self.modalities), self.cfg.video.size[0]
        if self.purpose == "evaluate":
            rng, segments, crops = None, self.data.segments, self.data.crops
            positions = [0.5] if segments == 1 else np.linspace(0, 1, segments).tolist()
        else:
            rng = np.random.Generator(np.random.Philox(key=[self.seed, epoch], counter=[0, 0, 0, clip.id]))
            positions, crops = [rng.random()], 1
        videos, audios = [], []
        for position in positions:
            window = sample_window(info, clip, position, frames, self.data, spread=self.purpose != "pretrain")
            if "audio" in self.modalities:
                audios += [self.hear(clip, info, window, rng)] * crops
            if "video" in self.modalities:
                decoded = read_frames(clip.path, window.frames)
                videos += [self.cut(decoded, clip, crop, rng) for crop in range(crops)]
        return np.stack(videos) if videos else None, np.stack(audios) if audios else None

    def hear(self, clip: Clip, info: VideoInfo, window: Window, rng: np.random.Generator | None) -> np.ndarray:
        """The window's spectrogram (1, frames, mels)."""
        waveform = read_window_audio(clip, info, window, self.data.missing_audio)
        if self.purpose == "pretrain":
            waveform = roll_mag(waveform, rng, self.data.roll)
        return model_input(waveform, self.cfg.audio.size[0])

    def cut(self, frames: np.ndarray, clip: Clip, crop: int, rng: np.random.Generator | None) -> np.ndarray:
        """The frames in the model's size: this purpose's crop and augmentation, or evaluation's ``crop``-th view."""
        size, bilinear, bicubic = self.cfg.video.size[1:], Image.Resampling.BILINEAR, Image.Resampling.BICUBIC
        within = augment.face_box(clip.face, frames.shape[1:3], self.data.face_margin)
        if self.purpose == "evaluate":
            return augment.crop(frames, augment.view_box(within, crop, self.data.crops), size, bilinear)
        if self.purpose == "pretrain":
            return augment.crop(frames, augment.multi_scale_box(within, rng, self.data.multi_scales), size, bilinear)
        # The crop comes before RandAugment, on a tenth of the pixels, and not after it as in the released loader.
        video = augment.crop(frames, augment.random_resized_box(within, rng, self.data.crop_scale), size, bicubic)
        magnitude, operations = self.data.rand_augment
        video = augment.rand_augment(video, rng, magnitude, operations)
        if rng.random() < self.data.flip:
            video = video[:, :, ::-1]
        return augment.random_erase(video, rng, self.data.erase)

    def collate(self, samples: list) -> Batch:
        """One batch, without the clips that could not be read."""
        bad = [b for *_, found in samples for b in found]
        samples = [s for s in samples if s[0] is not None]
        clips = [clip for clip, *_ in samples]
        if not clips:
            return Batch(None, None, None, None, [], bad=bad)

        def stack(k: int) -> Tensor | None:
            return None if samples[0][k] is None else torch.from_numpy(np.concatenate([s[k] for s in samples]))

        video, audio = stack(1), stack(2)
        labels = None if self.target is None else torch.as_tensor(np.array([self.target(c) for c in clips]))
        if labels is not None and labels.is_floating_point():
            labels = labels.float()
        views = len(video if video is not None else audio) // len(clips)
        return Batch(video, audio, labels, None, [c.id for c in clips], views, bad)


class PretrainDataset(ClipDataset):
    """Adds the masks, which belong to the epoch as well as to the clip."""

    def __getitem__(self, item: tuple[int, int]):
        return item[0], super().__getitem__(item)

    def collate(self, samples: list) -> Batch:
        batch = super().collate([sample for _, sample in samples])
        if batch.clips:
            batch.masks = DualMask.for_clips(self.cfg, batch.clips, self.seed, epoch=samples[0][0])
        return batch


@dataclass(frozen=True)
class Plan:
    """Which clips make up each step, whatever the number of processes and of accumulated micro-batches.

    Attributes:
        clips: in the list. total_batch: clips a step, over all processes. micro_batch: clips a forward pass a process.
        rank, world: this process and their number.
        weights: (clips,) sampling weights for class-balanced training; None: every clip once an epoch.
    """

    clips: int
    total_batch: int
    micro_batch: int
    rank: int = 0
    world: int = 1
    seed: int = 0
    weights: tuple[float, ...] | None = None

    @classmethod
    def fit(cls, clips: int, total_batch: int, largest_micro: int | None, **rest) -> "Plan":
        """The plan with the largest micro-batch that is at most ``largest_micro`` and divides the total batch evenly."""
        world = rest.get("world", 1)
        if total_batch % world:
            raise ValueError(f"total_batch: {total_batch} clips do not share out over {world} processes")
        share = total_batch // world
        fitting = (m for m in range(min(share, largest_micro or share), 0, -1) if share % m == 0)
        return cls(clips, total_batch, next(fitting), **rest)

    @property
    def accumulation(self) -> int:
        return self.total_batch // (self.micro_batch * self.world)

    @property
    def steps_per_epoch(self) -> int:
        return max(1, self.clips // self.total_batch)

    def order(self, epoch: int) -> np.ndarray:
        """The clips' order in an epoch; a list shorter than one batch goes round."""
        rng = np.random.Generator(np.random.Philox(key=[self.seed, epoch], counter=[0, 0, ORDER, 2**63]))
        if self.weights is not None:
            p = np.asarray(self.weights) / np.sum(self.weights)
            return rng.choice(self.clips, size=max(self.clips, self.total_batch), p=p)
        return np.resize(rng.permutation(self.clips), max(self.clips, self.total_batch))

    def micro_batches(self, first_step: int, last_step: int) -> Iterator[list[tuple[int, int]]]:
        """This process's (epoch, position) lists from one step up to another, ``accumulation`` of them a step."""
        for step in range(first_step, last_step):
            epoch, within = divmod(step, self.steps_per_epoch)
            rows = self.order(epoch)[within * self.total_batch :][: self.total_batch]
            for part in rows.reshape(self.accumulation, self.world, self.micro_batch)[:, self.rank]:
                yield [(epoch, int(i)) for i in part]


def loader(dataset: ClipDataset, batches, workers: int, pin: bool = False) -> DataLoader:
    """Decodes ``batches`` (an iterable of index lists) in ``workers`` processes, in order."""
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=dataset.collate,
        pin_memory=pin,
        prefetch_factor=2 if workers else None,
        worker_init_fn=_start_worker,
    )


def _start_worker(_: int) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the trainer, which still needs its batches
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
