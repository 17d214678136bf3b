"""How a training step is executed. An engine takes a step and gives one that does the same, faster: ``step = engine(step)``.

Each engine is one module or package in this folder, known by its name, with a function ``engine(step)``. Where it cannot serve a
step it says why in one line, and gives the step back.
"""

import importlib
import pkgutil
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from avfmae.data.batch import Batch

if TYPE_CHECKING:
    from avfmae.training.step import TrainingStep

Step = Callable[[Sequence[Batch]], dict[str, Tensor]]


def names() -> list[str]:
    """``auto``, ``eager`` and the engines that are in this folder."""
    return ["auto", "eager", *sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name != "captured")]


def build(name: str, step: "TrainingStep") -> Step:
    """The step as the named engine executes it; ``"auto"`` is a CUDA graph where one process has a GPU, else the step as it is.

    Raises:
        ValueError: there is no such engine.
    """
    if name not in names():
        raise ValueError(f"engine: got {name!r}, expected one of {', '.join(names())}")
    if name == "auto":
        name = "cuda_graph" if step.device.type == "cuda" and step.world == 1 else "eager"
    return step if name == "eager" else importlib.import_module(f"{__name__}.{name}").engine(step)


def say(engine: str, reason: str) -> None:
    """One line on why an engine does not serve a step, or a part of it."""
    print(f"avfmae: engine {engine}: {reason}", file=sys.stderr, flush=True)
