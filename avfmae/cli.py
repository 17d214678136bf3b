"""The command line. A command imports its options, parses them, and only then imports what it runs: help needs no torch."""

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

USAGE = """\
usage: avfmae COMMAND [options]      (avfmae COMMAND --help for the options)

To begin with
  demo         draw a talking-face data set, run all three stages on it

Data
  dataset      a named data set (MAFW, CREMA-D, ...), from its archive to a
               manifest, verified; or the list of all
  prepare      raw videos to a prepared set: faces cropped, sound resampled,
               packed in shards that train fast
  inspect      what the model will see of a set or of single videos: frames,
               boxes, spectrograms, masks, flags
  import-list  turn a released space-separated list into a manifest

Training
  pretrain     stage 1: masked pre-training on unlabelled clips
  psi          stage 2: progressive semantics injection on several labelled
               sets
  finetune     stage 3: fine-tune on one labelled set; folds, metrics, a
               result table
  experiment   a protocol from a file: every fold and seed, intervals, one
               page beside published numbers

A trained model
  predict      a fine-tuned model on your own videos: faces followed, what is
               predicted over time, annotated videos
  features     what the encoders make of clips: one vector a clip, a region or
               a token, as arrays
  evaluate     a fine-tuned model on a manifest or on single videos: metrics,
               or a table of predictions
  reconstruct  what a pre-trained model makes of the hidden parts of your own
               videos, drawn
  export       a fine-tuned model as ONNX or torch.export, any number of clips
               at once
  app          a page on this machine: drop a video or record one, and see
               what a fine-tuned model says of it

This machine
  doctor       what was built, which torch, GPU and decoders, and which kernels
               run here and why
  bench        speed against HiCMAE as published and AVF-MAE++ as released:
               step, kernels, loader, scaling, plot

A published recipe gives a stage's settings (--recipe base, as train/configs
has them), a TOML file other ones (--config mine.toml); the file overrides the
recipe, and the command line both:

  avfmae pretrain --recipe base --manifest clips.csv --out runs/mine
"""


def parse(kind: type[T], command: str, arguments: Sequence[str]) -> T:
    """The command line over the file that ``--config`` names, over the published ``--recipe``, over the model of ``--preset``."""
    import tyro

    from avfmae.console import help_fitted
    from avfmae.recipes import configuration
    from avfmae.training.config import RunConfig

    given = {}
    if issubclass(kind, RunConfig):
        values: dict[str, Any] = {name: last_value(f"--{name}", arguments) for name in ("recipe", "config", "preset")}
        given["default"] = configuration(kind, command, **values)
        if {"-h", "--help"} & set(arguments):
            from avfmae.help import print_help

            print_help(given["default"], command)
            raise SystemExit(0)
    with help_fitted():
        return tyro.cli(kind, prog=f"avfmae {command}", args=arguments, **given)


def last_value(option: str, arguments: Sequence[str]) -> str | None:
    """What the last ``--option VALUE`` or ``--option=VALUE`` of a command line says; None if there is none."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(option, nargs="?")
    return vars(parser.parse_known_args(arguments)[0])[option.strip("-")]


def run_finetune(run: Any) -> None:
    from avfmae.stages.finetune import finetune
    from avfmae.viz.pages import print_results

    print_results(finetune(run))


def run_import_list(run: Any) -> None:
    from avfmae.data.manifest import read_released_list, write_manifest

    if not run.source.is_file():
        raise FileNotFoundError(f"{run.source}: no such list")
    clips = read_released_list(run.source)
    write_manifest(run.manifest, clips)
    print(f"{run.manifest}: {len(clips)} clips")


def run_doctor(arguments: Sequence[str]) -> None:
    if unknown := [argument for argument in arguments if argument not in ("-h", "--help")]:
        sys.exit(f"avfmae doctor: takes no options, got {unknown[0]}")
    if arguments:
        print("usage: avfmae doctor\n\nWhat was built, which torch, GPU and decoders, and which kernels run here\nand why.")
        return
    from avfmae.doctor import doctor

    doctor()


# What a command runs, and the class of its options; None: it parses its arguments itself. "module:name" is imported when it runs.
COMMANDS: dict[str, tuple[str | Callable[[Any], Any], str | None]] = {
    "demo": ("avfmae.demo:demo", "avfmae.options:DemoConfig"),
    "dataset": ("avfmae.datasets.command:dataset", "avfmae.options:DatasetConfig"),
    "prepare": ("avfmae.data.prepare:prepare", "avfmae.options:PrepareConfig"),
    "inspect": ("avfmae.viz.inspection:inspect", "avfmae.options:InspectConfig"),
    "import-list": (run_import_list, "avfmae.options:ImportListConfig"),
    "pretrain": ("avfmae.stages.pretrain:pretrain", "avfmae.stages.config:PretrainConfig"),
    "psi": ("avfmae.stages.psi:psi", "avfmae.stages.config:PSIConfig"),
    "experiment": ("avfmae.stages.experiment:experiment", "avfmae.options:ExperimentConfig"),
    "finetune": (run_finetune, "avfmae.stages.config:FinetuneConfig"),
    "predict": ("avfmae.inference.predict:predict", "avfmae.options:PredictConfig"),
    "features": ("avfmae.inference.features:features", "avfmae.options:FeaturesConfig"),
    "evaluate": ("avfmae.inference.evaluate:evaluate", "avfmae.options:EvaluateConfig"),
    "reconstruct": ("avfmae.inference.reconstruct:reconstruct", "avfmae.options:ReconstructConfig"),
    "export": ("avfmae.inference.export:export", "avfmae.options:ExportConfig"),
    "app": ("avfmae.inference.app:app", "avfmae.options:AppConfig"),
    "bench": ("avfmae_benchmarks.command:bench", None),
    "doctor": (run_doctor, None),
}


def run_command(command: str, arguments: Sequence[str]) -> None:
    function, options = COMMANDS[command]
    run = arguments if options is None else parse(imported(options), command, arguments)
    (imported(function) if isinstance(function, str) else function)(run)


def imported(name: str) -> Any:
    """What ``"module:name"`` names."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


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
    try:
        run_command(command, rest)
    except KeyboardInterrupt:
        print(f"avfmae {command}: stopped", file=sys.stderr)
        sys.exit(130)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("avfmae"):
            raise
        sys.exit(f"avfmae {command}: the package {error.name.partition('.')[0]} is not installed")
    except Exception as error:
        if not _can_be_put_right(error):
            raise
        from avfmae.files import printable

        sys.exit("\n".join(map(printable, f"avfmae {command}: {error}".split("\n"))))  # names in it may hold escape codes


def _can_be_put_right(error: Exception) -> bool:
    """Whether the message alone tells a user what to do."""
    told = (ValueError, OSError, RuntimeError)  # a MediaError is a RuntimeError
    return isinstance(error, told) and not isinstance(error, NotImplementedError) and str(error) != ""
