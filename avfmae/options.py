"""Options of the commands that are no stage of training. Importing them loads neither torch nor a decoder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass
class DemoConfig:
    """Draws faces and voices, pre-trains, injects semantics, fine-tunes on people it has not tested on, and shows it all.

    Attributes:
        out: where everything goes; ``report.html`` is the thing to open.
        seeds: of the fine-tunings: each row of the table has one a seed.
        choose_rates: instead of the demo, train with several learning rates, and print which is best on people held out of the
            training clips.
    """

    out: Path = Path("runs/demo")
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    choose_rates: bool = False


@dataclass
class EvaluateConfig:
    """A fine-tuned model on clips: metrics where the manifest has labels, predictions always.

    Attributes:
        weights: ``weights.safetensors`` of a fine-tuning run.
        clips: videos, or one manifest (.csv, .parquet, .txt).
        out: write the predictions to this CSV file; otherwise they are printed.
        segments: views a clip in time.
        crops: views a clip in space.
        missing_audio: ``silence`` lets a clip without sound pass.
        workers: decoding processes.
    """

    weights: Annotated[Path, tyro.conf.Positional]
    clips: Annotated[tuple[Path, ...], tyro.conf.Positional]
    out: Path | None = None
    segments: int = 2
    crops: int = 2
    missing_audio: Literal["error", "silence"] = "error"
    workers: int = 2


@dataclass
class ImportListConfig:
    """A released space-separated list as a manifest.

    Attributes:
        source: the list: ``<video> 0``, ``<video or frame folder> <wav> <label>`` or ``<frame folder> <label>`` a line.
        manifest: the CSV or Parquet file to write.
    """

    source: Annotated[Path, tyro.conf.Positional]
    manifest: Annotated[Path, tyro.conf.Positional]


@dataclass
class InspectConfig:
    """Draws what the model will see: 16 frames with their masks, the spectrogram under them in step, the face's box, flags and
    drift.

    Attributes:
        sources: videos; or one prepared set, manifest (.csv, .parquet, .txt) or folder of videos, of which clips are sampled.
        out: a folder, for report.html and pictures.
        preset: the model whose sizes and masks are shown.
        clips: how many of a set are drawn.
        seed: of the choice, and of the masks.
        face_margin: around the face of clips that are not prepared.
        time_limit: seconds that one clip may take.
        workers: processes.
    """

    sources: Annotated[tuple[Path, ...], tyro.conf.Positional]
    out: Path = Path("runs/inspect")
    preset: str = "base"
    clips: int = 8
    seed: int = 0
    face_margin: float = 0.3
    time_limit: float = 60.0
    workers: int = 2


@dataclass
class PrepareConfig:
    """Raw videos to training shards: finds and crops the face, resamples the sound, re-encodes, packs. A broken-off run is
    continued.

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
        sound_track: which of a file's is taken: a language (eng) or a number from 0; none: the default one.
        keep: of the flags no-face, no-audio and short: clips with these are kept (no face: the middle of the frame), others set
            aside.
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
    sound_track: str | None = None
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
