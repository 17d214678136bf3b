"""``avfmae bench``: which subject, and its settings."""

import importlib
import sys
from collections.abc import Sequence

USAGE = """\
usage: avfmae bench SUBJECT [options]
       (avfmae bench SUBJECT --help for the options)

  step      training steps of avfmae and of the published models, in turns
            (--model mae_dfer); --profile says where the time goes
  kernels   every op at Base's shapes, every implementation, against the
            machine's bandwidth
  loader    clips a second from files, by number of decoding processes
  faces     detectors of faces: how many they find, how well, and how fast
  manifest  what a list of a million clips costs: to the first batch, at each
            step, for each worker
  trace     launches, bytes and operations of a step on a GPU, counted without
            one, and a model of their time
  scaling   our step over model and batch sizes
  plot      plots and the README's table from the rows that the others saved
"""


def bench(arguments: Sequence[str]) -> None:
    subject, *rest = arguments or ["--help"]
    if subject in ("-h", "--help"):
        print(USAGE)
        return
    if subject not in SUBJECTS:
        sys.exit(f"avfmae bench: no subject {subject!r}; there are {', '.join(SUBJECTS)}")
    import tyro  # the only need of it: who calls the benchmarks from Python does without

    from avfmae.console import help_fitted
    from avfmae_benchmarks import options

    kind, function = SUBJECTS[subject]
    with help_fitted():
        run = tyro.cli(getattr(options, kind), prog=f"avfmae bench {subject}", args=rest)
    module, _, name = function.partition(":")
    getattr(importlib.import_module(f"avfmae_benchmarks.{module}"), name)(run)


# subject: its options, and what it runs; imported when it runs
SUBJECTS = {
    "step": ("StepConfig", "step:step"),
    "kernels": ("KernelsConfig", "kernels:kernels"),
    "loader": ("LoaderConfig", "loader:bench_loader"),
    "faces": ("FacesConfig", "faces:bench_faces"),
    "manifest": ("ManifestConfig", "manifest:manifest"),
    "trace": ("TraceConfig", "cluster:trace"),
    "scaling": ("ScalingConfig", "scaling:scaling"),
    "plot": ("PlotConfig", "plots:plot"),
}
