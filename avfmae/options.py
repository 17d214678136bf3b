"""Options of the commands that are no stage of training. Importing them loads neither torch nor a decoder.

The comment on an option is its help.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from avfmae.bounds import check_least, check_some


@dataclass
class AppConfig:
    """A page on this machine: drop a video or record one, and see faces, predictions, the spectrogram and the attention."""

    model: Path  # ``weights.safetensors`` of a fine-tuning run, or its folder.
    host: str = "127.0.0.1"  # the address to listen at; 0.0.0.0: everyone who reaches this machine can use the page.
    port: int | None = None  # none: the first that is free, from 7860 on.
    largest: int = 500  # megabytes that an upload may have.
    # how faces are found, see ``prepare``; precropped takes the frames as faces; none: as in training.
    detector: Literal["auto", "mtcnn", "haar", "precropped"] | None = None

    def __post_init__(self):
        check_least(self, largest=1, port=1)
        if self.port is not None and self.port > 65_535:
            raise ValueError(f"port: got {self.port}, expected at most 65535")


@dataclass
class DatasetConfig:
    """A named data set as a manifest. Without a name all are listed; without a root, what is known of one is printed."""

    name: Annotated[str | None, tyro.conf.Positional] = None
    root: Path | None = None  # the folder of the downloaded and unpacked archive.
    # the manifest to write (.csv or .parquet); FILE.toml beside it says how it is fine-tuned on, FILE.faults.csv what is amiss.
    out: Path | None = None
    # compare counts, classes and folds with what is published, and look at every clip: is it there, does it decode, is it silent,
    # is a face seen? Ends with status 1 where something is amiss.
    verify: bool = False
    # class names in index order where none is published (mafw-43) or another is wanted; of werewolf-xl, what its numbers are.
    classes: tuple[str, ...] = ()
    annotation: Path | None = None  # labels or folds that lie elsewhere than in the archive, or are of your own.
    faces: Path | None = None  # a folder of face crops, taken for the videos: a folder of images or a video for each clip.
    sound: Path | None = None  # a folder of sound files, taken for the videos' own sound.
    # what --verify looks for faces with, see ``prepare``; precropped does not look.
    detector: Literal["auto", "mtcnn", "haar", "yunet", "precropped"] = "auto"
    yunet: Path | None = None  # YuNet's .onnx file.
    faults: Path | None = None  # where the table of faults goes instead.
    workers: int = 0  # processes of --verify; 0: one a core.
    time_limit: float = 60.0  # seconds that one clip may take.

    def __post_init__(self):
        check_least(self, workers=0, time_limit=0)


@dataclass
class DemoConfig:
    """Draws faces and voices, pre-trains, injects semantics, fine-tunes on people it has not tested on, and shows it all."""

    out: Path = Path("runs/demo")  # where everything goes; ``report.html`` is the thing to open.
    model: str = "demo"  # the member of the family, by its preset: hicmae_base (or hicmae), mae_dfer, svfap, ablation_lgi3, ...
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)  # of the fine-tunings: each row of the table has one a seed.
    pretraining_seed: int = 0  # of the one pre-training: its first weights, masks and order of clips.
    # instead of the demo, train with several learning rates, and print which is best on people held out of the training clips.
    choose_rates: bool = False


@dataclass
class EvaluateConfig:
    """A fine-tuned model on clips: metrics where the manifest has labels, predictions always."""

    weights: Annotated[Path, tyro.conf.Positional]  # ``weights.safetensors`` of a fine-tuning run, or its folder.
    clips: Annotated[tuple[Path, ...], tyro.conf.Positional]  # videos, or one manifest (.csv, .parquet, .txt).
    out: Path | None = None  # write the predictions to this CSV file; otherwise they are printed.
    split: str | None = None  # the manifest's clips of this split alone; none: all, and each split is scored by itself.
    by: tuple[str, ...] = ()  # columns of the manifest, such as subject_sex: each group of clips is scored by itself too.
    report: Path | None = None  # a folder for groups.json, groups.csv and a picture of each column of ``by``.
    segments: int | None = None  # views a clip in time; none: as the model was evaluated in training.
    crops: int | None = None  # views a clip in space; none: likewise.
    # ``silence`` lets a clip without sound pass; none: as in training.
    missing_audio: Literal["error", "silence"] | None = None
    # raw clips are cut to faces as those that the model was trained on; off: the manifest's box is taken, or the whole frame.
    find_faces: bool = True
    yunet: Path | None = None  # YuNet's .onnx file, where training's faces were found by it and it lies elsewhere now.
    workers: int = 2  # decoding processes.

    def __post_init__(self):
        check_some(self, "clips")
        check_least(self, segments=1, crops=1, workers=0)
        if self.report is not None and not self.by:
            raise ValueError("report: is of groups of clips; give the columns that tell them with --by COLUMN")


@dataclass
class ExportConfig:
    """A fine-tuned model for other programs: ONNX, or torch.export's archive; compared with the model before it is kept."""

    model: Annotated[Path, tyro.conf.Positional]  # ``weights.safetensors`` of a fine-tuning run, or its folder.
    out: Path  # .onnx or .pt2.


@dataclass
class FeaturesConfig:
    """What the encoders of a pre-trained or fine-tuned model make of clips, as arrays."""

    sources: Annotated[tuple[Path, ...], tyro.conf.Positional]  # videos, or one manifest (.csv, .parquet, .txt).
    model: Path  # ``weights.safetensors`` of a training run, or its folder.
    out: Path  # .safetensors or .npz, with a .csv beside it that tells each row's clip; or .parquet.
    level: Literal["clip", "region", "token"] = "clip"  # one vector a modality, one a region, or one a token.
    layers: tuple[int, ...] = (-1,)  # blocks, from 0, or from -1 backwards; those of several stand one after the other.
    learned: bool = False  # all blocks, weighed as the fine-tuned model does, in place of ``layers``.
    pool: Literal["mean", "max"] = "mean"  # over regions, of level clip.
    segments: int = 1  # windows spread over a clip, whose mean is taken.
    batch: int = 8  # clips in one pass of the model.
    workers: int = 2  # decoding processes.

    def __post_init__(self):
        check_some(self, "sources")
        check_least(self, segments=1, batch=1, workers=0)


@dataclass
class ExperimentConfig:
    """All folds and seeds of a protocol, and one page of results. A run that was broken off is continued."""

    # TOML: dataset, protocol (the file that avfmae dataset writes beside a manifest), recipe, seeds, and the tables [finetune]
    # and [variants.NAME] with settings of fine-tuning.
    file: Annotated[Path, tyro.conf.Positional]
    out: Path | None = None  # a folder; none: runs/ and the file's name.
    jobs: int = 1  # fine-tunings at the same time; on GPUs, each has one.
    engine: Literal["local", "ray"] = "local"  # on this machine, or as tasks of a Ray cluster that sees the same paths.
    ray_address: str | None = None  # of a cluster; none: one is started here.
    leaks: Literal["contents", "names", "off"] = "contents"  # how test clips are looked for among training clips.


@dataclass
class ImportListConfig:
    """A released space-separated list as a manifest."""

    # the list: ``<video> 0``, ``<video or frame folder> <wav> <label>`` or ``<frame folder> <label>`` a line.
    source: Annotated[Path, tyro.conf.Positional]
    manifest: Annotated[Path, tyro.conf.Positional]  # the CSV or Parquet file to write.


@dataclass
class InspectConfig:
    """Draws what the model will see: 16 frames with their masks, the spectrogram under them in step, the face's box, flags and
    drift."""

    # videos; or one prepared set, manifest (.csv, .parquet, .txt) or folder of videos, of which clips are sampled.
    sources: Annotated[tuple[Path, ...], tyro.conf.Positional]
    out: Path = Path("runs/inspect")  # a folder, for report.html and pictures.
    preset: str = "base"  # the model whose sizes and masks are shown.
    clips: int = 8  # how many of a set are drawn.
    seed: int = 0  # of the choice, and of the masks.
    face_margin: float = 0.3  # around the face of clips that are not prepared.
    detector: Literal["auto", "mtcnn", "haar", "yunet"] = "auto"  # of the face of clips that are not prepared, see ``prepare``.
    yunet: Path | None = None  # YuNet's .onnx file.
    time_limit: float = 60.0  # seconds that one clip may take.
    workers: int = 2  # processes; 0: one a core.

    def __post_init__(self):
        check_least(self, clips=1, seed=0, face_margin=0, time_limit=0, workers=0)


@dataclass
class PredictConfig:
    """A fine-tuned model on any videos: faces found and followed, windows that slide over them, a row a window and face."""

    videos: Annotated[tuple[Path, ...], tyro.conf.Positional]  # files, or folders of frame images; none with ``--camera``.
    model: Path  # ``weights.safetensors`` of a fine-tuning run, or its folder.
    # in place of videos, the number of a camera or the address of a stream: its picture alone, until Ctrl-C, in constant memory.
    camera: str | None = None
    out: Path | None = None  # a folder for tables (CSV, JSON, Parquet), timelines and thumbnails; otherwise a table is printed.
    annotate: bool = False  # write each video with boxes, bars and its sound too (needs ``--out``).
    faces: Literal["main", "all"] = "main"  # in each window the face that is seen most, or all that are often seen.
    step: float | None = None  # seconds from one window to the next; none: half a window.
    whole: bool = False  # instead, one prediction a video, as ``evaluate`` makes it.
    # how faces are found, see ``prepare``; precropped takes the frames as faces; none: as in training.
    detector: Literal["auto", "mtcnn", "haar", "yunet", "precropped"] | None = None
    yunet: Path | None = None  # YuNet's .onnx file.
    margin: float | None = None  # room around the face, in shares of its side; none: as in training.
    every: int | None = None  # frames from one in which faces are looked for to the next; none: as in training, or 5.
    batch: int = 8  # windows and faces in one pass of the model.

    def __post_init__(self):
        check_least(self, margin=0, every=1, batch=1)
        if self.step is not None and not 0 < self.step < math.inf:
            raise ValueError(f"step: got {self.step}, expected seconds above 0")
        if self.annotate and self.out is None:
            raise ValueError("annotate: needs a folder to write to; give it with --out FOLDER")
        if bool(self.videos) == (self.camera is not None):
            raise ValueError(f"videos, camera: got {'both' if self.videos else 'neither'}, expected one of them")
        if self.camera is not None and (self.annotate or self.whole):
            raise ValueError(f"{'annotate' if self.annotate else 'whole'}: needs a file, and a camera is none")
        windows = ("annotate", "step", "detector", "margin", "every")
        if self.whole and (given := [name for name in windows if getattr(self, name)] or ["faces"] * (self.faces != "main")):
            raise ValueError(f"{given[0]}: is of windows, and whole makes none")


@dataclass
class PrepareConfig:
    """Raw videos to training shards: finds and crops the face, resamples the sound, re-encodes, packs. A broken-off run is
    continued."""

    # a manifest (.csv, .parquet, .txt), or a folder, all of whose videos are taken.
    source: Annotated[Path, tyro.conf.Positional]
    out: Path  # the folder of the prepared set; train with its manifest.csv.
    # auto: mtcnn if its package is installed, else haar, which comes with OpenCV; yunet needs its model; precropped takes the
    # frames as faces; manifest takes its boxes.
    detector: Literal["auto", "mtcnn", "haar", "yunet", "precropped", "manifest"] = "auto"
    yunet: Path | None = None  # YuNet's .onnx file.
    every: int = 5  # frames from one in which the face is looked for to the next.
    choose: Literal["persistent", "largest"] = "persistent"  # of several faces, the one seen most, or the largest.
    follow: bool = False  # the crop moves with the face, smoothly; else it stands still.
    margin: float = 0.3  # room around the face, in shares of its side.
    size: int = 176  # of the stored frames, pixels.
    quality: int = 21  # x264's rate factor; lower is better and larger.
    min_frames: int = 16  # clips of fewer are short.
    # which of a file's is taken: a language (eng) or a number from 0; none: the default one.
    sound_track: str | None = None
    # of the flags no-face, no-audio and short: clips with these are kept (no face: the middle of the frame), others set aside.
    keep: tuple[Literal["no-face", "no-audio", "short"], ...] = ("no-audio",)
    shard_clips: int = 256  # clips of the source a shard.
    workers: int = 0  # processes; 0: one a core.
    time_limit: float = 300.0  # seconds that one clip may take.
    engine: Literal["local", "ray"] = "local"  # on this machine, or as tasks of a Ray cluster that sees the same paths.
    ray_address: str | None = None  # of a cluster; none: one is started here.

    def __post_init__(self):
        check_least(self, every=1, size=32, quality=0, min_frames=1, shard_clips=1, workers=0, margin=0, time_limit=0)
        if self.size % 2:
            raise ValueError(f"size: got {self.size}, expected an even number (colours are stored at half the size)")


@dataclass
class ReconstructConfig:
    """What a pre-trained model makes of the hidden parts of videos: original, masked and reconstructed, as pictures and mp4."""

    videos: Annotated[tuple[Path, ...], tyro.conf.Positional]  # files.
    model: Path  # ``weights.safetensors`` of a pre-training, or its folder.
    out: Path = Path("runs/reconstructed")  # a folder, for a picture and an mp4 of each video.
    seed: int = 0  # of the window and its masks.

    def __post_init__(self):
        check_some(self, "videos")
        check_least(self, seed=0)
