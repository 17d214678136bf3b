"""The compiled modules: which are loaded, and why the others are not."""

import importlib
import importlib.util
import json
import multiprocessing
import warnings
from functools import cache
from pathlib import Path

import torch

from avfmae_kernels import processor
from avfmae_kernels.sources import digest

_record = Path(__file__).with_name("_build.json")
RECORD = json.loads(_record.read_text()) if _record.exists() else {}
CSRC = Path(__file__).parents[1] / "csrc"  # there where the package is used in its source tree


def _recorded(name: str) -> str:
    """What the build says of a module that is not there."""
    kind = "_cpu" if name.startswith("_cpu") else name
    return RECORD.get("missing", {}).get(kind, "it was not built; `pip install .` in the source tree builds it")


@cache
def _stale() -> str | None:
    if "sources" in RECORD and (CSRC / "module.cpp").exists() and digest(CSRC) != RECORD["sources"]:
        return f"{CSRC} has changed since the kernels were built; `pip install -e .` there builds them again"
    return None


def _load(name: str | None) -> str | None:
    """Imports a compiled module; returns None, or why it is not there."""
    if name is None:
        return "this processor has no AVX2, which the compiled kernels need"
    if importlib.util.find_spec(f"avfmae_kernels.{name}") is None:
        return f"avfmae_kernels.{name} is missing: {_recorded(name)}"
    if stale := _stale():
        return stale
    try:
        importlib.import_module(f"avfmae_kernels.{name}")
    except ImportError as error:
        return f"avfmae_kernels.{name} does not load beside torch {torch.__version__}: {error}"
    return None


# By device, and "host" for the data workers' helpers.
MISSING = {
    "cpu": _load(processor.module()),
    "cuda": _load("_cuda") if torch.version.cuda else f"torch {torch.__version__} has no CUDA",
    "host": _load("_host"),
}

if MISSING["cpu"] and multiprocessing.parent_process() is None:
    warnings.warn(f"plain PyTorch runs instead of the compiled kernels. {MISSING['cpu']}", RuntimeWarning, stacklevel=2)
