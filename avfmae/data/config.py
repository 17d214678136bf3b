"""Settings of the data path: how clips are read, and how a set is prepared. Importing them loads neither torch nor a decoder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


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
        workers: decoding processes; 0 decodes in the training process, unwatched.
        clip_seconds: time limit for reading one clip; one that takes longer is a bad clip.
        recycle: clips after which a decoding process is replaced.
        mixed_shards: of a prepared set, shards whose clips are shuffled together, one lot after the other.
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
    clip_seconds: float = 30.0
    recycle: int = 20_000
    mixed_shards: int = 64


@dataclass
class PrepareConfig:
    """Raw videos to training shards: finds and crops the face, resamples the sound, re-encodes, packs. A broken-off run is continued.

    Attributes:
        source: a manifest (.csv, .parquet, .txt), or a folder, all of whose videos are taken.
        out: the folder of the prepared set; train with its manifest.csv.
        detector: haar comes with OpenCV; yunet needs its model; precropped takes the frames as faces; manifest takes its boxes.
        yunet: YuNet's .onnx file.
        every: frames from one in which the face is looked for to the next.
        choose: of several faces, the one seen most, or the largest.
        follow: the crop moves with the face, smoothly; else it stands still.
        margin: room around the face, in shares of its side.
        size: of the stored frames, pixels.
        quality: x264's rate factor; lower is better and larger.
        min_frames: clips of fewer are short.
        keep: of the flags no-face, no-audio and short: clips with these are kept (no face: the middle of the frame), others set aside.
        shard_clips: clips of the source a shard.
        workers: processes; 0: one a core.
        time_limit: seconds that one clip may take.
        engine: on this machine, or as tasks of a Ray cluster that sees the same paths.
        ray_address: of a cluster; none: one is started here.
    """

    source: Annotated[Path, tyro.conf.Positional]
    out: Path
    detector: Literal["haar", "yunet", "precropped", "manifest"] = "haar"
    yunet: Path | None = None
    every: int = 5
    choose: Literal["persistent", "largest"] = "persistent"
    follow: bool = False
    margin: float = 0.3
    size: int = 176
    quality: int = 21
    min_frames: int = 16
    keep: tuple[Literal["no-face", "no-audio", "short"], ...] = ("no-audio",)
    shard_clips: int = 256
    workers: int = 0
    time_limit: float = 300.0
    engine: Literal["local", "ray"] = "local"
    ray_address: str | None = None

    def __post_init__(self):
        for name, low in (("every", 1), ("size", 32), ("min_frames", 1), ("shard_clips", 1), ("workers", 0), ("margin", 0)):
            if getattr(self, name) < low:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least {low}")
        if self.size % 2:
            raise ValueError(f"size: got {self.size}, expected an even number (colours are stored at half the size)")
