"""Options of the benchmarks. Importing them does not load torch, so that help is there at once."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from avfmae.data.config import DataConfig
from avfmae_benchmarks import results

Stage = Literal["pretrain", "finetune"]
Size = Literal["tiny", "base", "large", "huge"]
Model = Literal[
    "tiny", "base", "large", "huge", "giant", "hicmae_base", "mae_dfer", "svfap",
    "ablation_lgi3", "ablation_lgi4", "ablation_dier", "ablation_hafe",
]  # fmt: skip
SideName = Literal[
    "ours", "ours-fastest", "ours-eager", "reference", "compiled", "hicmae", "hicmae-compiled", "released", "mae_dfer", "svfap"
]
ROOT = results.CHECKOUT or Path()


@dataclass
class StepConfig:
    """A training step: a batch on the host, forward, backward, clipping, AdamW. Sides are built and timed in pairs, a pair's in
    turns.

    What is timed is checked first: ours against the plain path, each peer against our model of its weights. Where a check fails
    no speed-up is printed, and the command fails. A side that does not fit into memory is a row that says so.

    Attributes:
        stage: pre-training or fine-tuning.
        model: a member of the family by its preset. HiCMAE is also what AVF-MAE++ Base is measured against.
        sides: the first is paired with each of the others; a speed-up is of one pair's own turns.
        precisions: of every side; empty: bf16 (fp16 as published) on a GPU, float32 and bf16 on a CPU that multiplies bf16.
        batch: clips a step; 0: 256 on a GPU (fine-tuning 32), 4 on a CPU (fine-tuning 2).
        rounds: timed turns. warm_up: turns before them.
        device: auto, cpu or cuda.
        profile: write a trace of every side, and print where a step's time goes.
        save: append rows to the results, pair by pair.
        out: the folder of results.
    """

    stage: Stage = "pretrain"
    model: Model = "base"
    sides: tuple[SideName, ...] = ()
    precisions: tuple[Literal["float32", "bf16", "fp16"], ...] = ()
    batch: int = 0
    rounds: int = 7
    warm_up: int = 2
    device: Literal["auto", "cpu", "cuda"] = "auto"
    profile: bool = False
    save: bool = True
    out: Path = results.FOLDER


@dataclass
class KernelsConfig:
    """Ops, forward and backward; implementations in turns. Each implementation's answer is checked against the reference's first.

    Attributes:
        only: ops to measure, by the beginning of their case's name; empty: all.
        precisions: dtypes.
        batch: clips; 0: 256 on a GPU, 8 on a CPU.
        rounds: timed turns.
        device: auto, cpu or cuda.
        save: append rows to the results.
        out: the folder of results.
    """

    only: tuple[str, ...] = ()
    precisions: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
    batch: int = 0
    rounds: int = 15
    device: Literal["auto", "cpu", "cuda"] = "auto"
    save: bool = True
    out: Path = results.FOLDER


@dataclass
class LoaderConfig:
    """Clips a second on one core, from one set of clips: published (decord, Pillow, Kaldi filterbank), ours from mp4, ours
    prepared.

    Attributes:
        source: videos to make the clips of, a folder or a manifest; none: drawn ones.
        clips: how many; each is looped to 8 s, cut to 224 x 224 pixels and encoded as H.264 with 25 frames a second.
        rounds: passes over the clips that are timed, all sides in turns.
        workers: numbers of decoding processes for the rates of the whole loader; none: left out.
        seconds: for each of these.
        opens: of good and bad files, one after the other, over which memory and open files are watched; 0: left out.
        save: append rows to the results.
        out: the folder of results.
    """

    source: Path | None = None
    clips: int = 12
    rounds: int = 8
    workers: tuple[int, ...] = (1, 2)
    seconds: float = 5.0
    opens: int = 2000
    data: DataConfig = field(default_factory=DataConfig)
    save: bool = True
    out: Path = results.FOLDER


@dataclass
class FacesConfig:
    """Detectors of faces, in turns on one core: the share that is found, overlap with the given box, false alarms and
    milliseconds a frame; on frames as they are, turned, narrowed, blurred, darkened, and shrunk to a crowd.

    Attributes:
        source: a manifest of clips with the boxes of their faces, one face a clip.
        frames: of each clip.
        rounds: timed turns.
        yunet: YuNet's .onnx file; none: it is left out.
        save: append rows to the results.
        out: the folder of results.
    """

    source: Path
    frames: int = 4
    rounds: int = 3
    yunet: Path | None = None
    save: bool = True
    out: Path = results.FOLDER


@dataclass
class ManifestConfig:
    """Time and memory that a long list of prepared clips takes, beside what one of a single clip takes.

    Attributes:
        clips: rows of the list, which is written to a temporary folder with all columns of a prepared set.
        batch: clips a step.
        ranks: processes of one machine, whose memory is measured together.
    """

    clips: int = 1_360_000
    batch: int = 256
    ranks: int = 8


@dataclass
class ScalingConfig:
    """Our step at growing batches, for each model size; a size ends where its batch does not fit.

    Attributes:
        stage: pre-training or fine-tuning.
        sizes: of the model.
        batches: clips a step; empty: 32 to 1024 on a GPU, 1 to 8 on a CPU.
        precision: of the step; auto is bf16 where the processor multiplies it.
        rounds: timed turns.
        device: auto, cpu or cuda.
        save: append rows to the results.
        out: the folder of results.
    """

    stage: Stage = "pretrain"
    sizes: tuple[Size, ...] = ()
    batches: tuple[int, ...] = ()
    precision: Literal["auto", "float32", "bf16"] = "auto"
    rounds: int = 5
    device: Literal["auto", "cpu", "cuda"] = "auto"
    save: bool = True
    out: Path = results.FOLDER


@dataclass
class TraceConfig:
    """What a training step asks of a GPU, counted on tensors without memory, and what a model makes of it. Needs no GPU.

    Attributes:
        stage: pre-training or fine-tuning.
        model: a member of the family by its preset.
        sides: empty: ours, the reference in plain PyTorch, and the peers.
        batch: clips a step; 0: 256, in fine-tuning 32.
        precision: of our sides; peers go in what each was made for.
        gpu: whose data sheet the model takes: H200, H100, A100 or RTX 4090.
        gpus: in a node. nodes: with gpus, of ours alone: communication, memory a GPU and hours of the paper's pre-training, by
            strategy, from the links' data sheets; ``batch`` is a GPU's.
        lines: how many source lines to show of each side.
        json: print one line a side for programs, and nothing else.
    """

    stage: Stage = "pretrain"
    model: Model = "base"
    sides: tuple[SideName, ...] = ()
    batch: int = 0
    precision: Literal["bf16", "float32"] = "bf16"
    gpu: str = "H200"
    gpus: int = 1
    nodes: int = 1
    lines: int = 0
    json: bool = False


@dataclass
class PlotConfig:
    """Draws bars against the peers and a roofline, and writes the README's table.

    Attributes:
        results: the folder of CSV files.
        pictures: where PNG files go.
        readme: whose marked part is written anew; nothing is written where it has none.
    """

    results: Path = results.FOLDER
    pictures: Path = ROOT / "docs" / "images"
    readme: Path = ROOT / "README.md"
