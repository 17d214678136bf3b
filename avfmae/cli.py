"""The command line: ``avfmae demo | prepare | inspect | pretrain | psi | finetune | evaluate | import-list | bench | doctor``."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import tyro

from avfmae.training.config import FinetuneConfig, PretrainConfig, PSIConfig, read_toml

T = TypeVar("T")

USAGE = """\
usage: avfmae COMMAND [options]        (avfmae COMMAND --help for the options)

  demo         draw a talking-face data set, run all three stages on it, write a report: start here
  pretrain     stage 1: masked pre-training on unlabelled clips
  psi          stage 2: progressive semantics injection on several labelled sets
  finetune     stage 3: fine-tune on one labelled set; folds, metrics, result table
  evaluate     a fine-tuned model on a manifest or on single videos: metrics, or a table of predictions
  prepare      raw videos to a prepared set: faces cropped, sound resampled, packed in shards that train fast
  inspect      what the model will see of a set or of single videos: frames, boxes, spectrograms, masks, flags
  import-list  turn a released space-separated list into a manifest
  bench        speed against HiCMAE as published and AVF-MAE++ as released: step, kernels, loader, scaling, plot
  doctor       what was built, which torch, GPU and decoders, and which kernels run here and why

A TOML file gives a stage's settings (--config train/configs/base_pretrain.toml), and the command line overrides it:

  avfmae pretrain --config train/configs/base_pretrain.toml --manifest clips.csv --out runs/mine --optim.epochs 50
"""


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


def parse(kind: type[T], command: str, arguments: Sequence[str]) -> T:
    """The command line over the TOML file that ``--config`` names, over the defaults of ``kind``."""
    default = None
    for i, argument in enumerate(arguments):
        if argument == "--config" and i + 1 < len(arguments):
            default = read_toml(kind, arguments[i + 1])
        elif argument.startswith("--config="):
            default = read_toml(kind, argument.partition("=")[2])
    if default is None:
        return tyro.cli(kind, prog=f"avfmae {command}", args=arguments)
    return tyro.cli(kind, prog=f"avfmae {command}", args=arguments, default=default)


def run_demo(arguments: Sequence[str]) -> None:
    from avfmae.demo import DemoConfig, demo

    demo(parse(DemoConfig, "demo", arguments))


def run_pretrain(arguments: Sequence[str]) -> None:
    from avfmae.training.pretrain import pretrain

    pretrain(parse(PretrainConfig, "pretrain", arguments))


def run_psi(arguments: Sequence[str]) -> None:
    from avfmae.training.psi import psi

    psi(parse(PSIConfig, "psi", arguments))


def run_finetune(arguments: Sequence[str]) -> None:
    from avfmae.report import print_results
    from avfmae.training.finetune import finetune

    print_results(finetune(parse(FinetuneConfig, "finetune", arguments)))


def run_evaluate(arguments: Sequence[str]) -> None:
    from avfmae.evaluation import evaluate

    run = parse(EvaluateConfig, "evaluate", arguments)
    evaluate(**{f.name: getattr(run, f.name) for f in dataclasses.fields(run)})


def run_import_list(arguments: Sequence[str]) -> None:
    from avfmae.data.manifest import read_released_list, write_manifest

    run = parse(ImportListConfig, "import-list", arguments)
    if not run.source.is_file():
        raise FileNotFoundError(f"{run.source}: no such list")
    clips = read_released_list(run.source)
    write_manifest(run.manifest, clips)
    print(f"{run.manifest}: {len(clips)} clips")


def run_prepare(arguments: Sequence[str]) -> None:
    from avfmae.data.prepare import PrepareConfig, prepare

    prepare(parse(PrepareConfig, "prepare", arguments))


def run_inspect(arguments: Sequence[str]) -> None:
    from avfmae.inspect import InspectConfig, inspect

    inspect(parse(InspectConfig, "inspect", arguments))


def run_bench(arguments: Sequence[str]) -> None:
    from avfmae_benchmarks.command import bench

    bench(arguments)


def run_doctor(arguments: Sequence[str]) -> None:
    from avfmae.doctor import doctor

    if arguments:
        print(
            "usage: avfmae doctor\n\nWhat was built, which torch, GPU and decoders, and which kernels run here and why."
        )
        return
    doctor()


COMMANDS = {
    "demo": run_demo, "pretrain": run_pretrain, "psi": run_psi, "finetune": run_finetune, "evaluate": run_evaluate,
    "prepare": run_prepare, "inspect": run_inspect, "import-list": run_import_list, "bench": run_bench, "doctor": run_doctor,
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command. What a user can put right is told in one line, without a traceback."""
    command, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if command in ("-h", "--help"):
        print(USAGE)
        return
    if command == "--version":
        import avfmae

        print(avfmae.__version__)
        return
    if command not in COMMANDS:
        sys.exit(f"avfmae: no command {command!r}; there are {', '.join(COMMANDS)}")
    from avfmae.data.media import MediaError

    try:
        COMMANDS[command](rest)
    except (ValueError, FileNotFoundError, MediaError, RuntimeError, json.JSONDecodeError) as error:
        if not str(error) or isinstance(error, NotImplementedError):
            raise
        sys.exit(f"avfmae {command}: {error}")
