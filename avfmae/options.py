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
        seeds: fine-tunings, each from the trained weights and from scratch.
        workers: decoding processes.
    """

    out: Path = Path("runs/demo")
    seeds: tuple[int, ...] = (0, 1, 2)
    workers: int = 2


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
    """Draws what the model will see: 16 frames with their masks, the spectrogram under them in step, the face's box, flags and drift.

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
