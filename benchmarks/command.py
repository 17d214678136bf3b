"""``avfmae bench``: which subject, and its settings."""

import sys
from collections.abc import Sequence

USAGE = """\
usage: avfmae bench SUBJECT [options]        (avfmae bench SUBJECT --help for the options)

  step      training steps of avfmae, HiCMAE as published and AVF-MAE++ as released, in turns; --profile says where the time goes
  kernels   every op at Base's shapes, every implementation, against the machine's bandwidth
  loader    clips a second from files, by number of decoding processes
  scaling   our step over model and batch sizes
  plot      pictures and the README's table from the rows that the others have saved
"""


def bench(arguments: Sequence[str]) -> None:
    subject, *rest = arguments or ["--help"]
    if subject in ("-h", "--help"):
        print(USAGE)
        return
    if subject not in SUBJECTS:
        sys.exit(f"avfmae bench: no subject {subject!r}; there are {', '.join(SUBJECTS)}")
    SUBJECTS[subject](rest)


def _parsed(kind: type, subject: str, arguments: Sequence[str]):
    import tyro  # the only need of it: who calls the benchmarks from Python does without

    return tyro.cli(kind, prog=f"avfmae bench {subject}", args=arguments)


def _step(arguments):
    from avfmae_benchmarks.step import StepConfig, step

    step(_parsed(StepConfig, "step", arguments))


def _kernels(arguments):
    from avfmae_benchmarks.kernels import KernelsConfig, kernels

    kernels(_parsed(KernelsConfig, "kernels", arguments))


def _loader(arguments):
    from avfmae_benchmarks.loader import LoaderConfig, bench_loader

    bench_loader(_parsed(LoaderConfig, "loader", arguments))


def _scaling(arguments):
    from avfmae_benchmarks.scaling import ScalingConfig, scaling

    scaling(_parsed(ScalingConfig, "scaling", arguments))


def _plot(arguments):
    from avfmae_benchmarks.plots import PlotConfig, plot

    plot(_parsed(PlotConfig, "plot", arguments))


SUBJECTS = {"step": _step, "kernels": _kernels, "loader": _loader, "scaling": _scaling, "plot": _plot}
