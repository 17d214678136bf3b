"""Numbers a clip: mean square error, and correlations."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from avfmae import metrics
from avfmae.data.clip import Clip
from avfmae.tasks.interface import Task


@dataclass(frozen=True)
class Regression(Task):
    """``outputs``: the numbers that each label has. ``names``: of these, if they are known."""

    outputs: int
    names: tuple[str, ...] = ()
    name, select = "regression", "CCC"

    @property
    def lower_is_better(self) -> frozenset[str]:
        return frozenset({"MSE", *(f"MSE_{name}" for name in self.names or range(self.outputs))})

    @classmethod
    def of_clips(cls, clips: Sequence[Clip], classes: Sequence[str] = ()) -> Self:
        outputs = len(_numbers(clips[0]))
        if classes and len(classes) != outputs:
            raise ValueError(f"classes: got {', '.join(classes)}, expected names of the {outputs} numbers that each label has")
        return cls(outputs, tuple(classes))

    @classmethod
    def of_weights(cls, about: dict, outputs: int) -> Self:
        return cls(outputs, tuple(about.get("names", ())))

    def about(self) -> dict:
        return {"names": self.names} if self.names else {}

    def target(self, clip: Clip) -> list[float]:
        """``"0.5 -1"`` or ``"0.5, -1"`` is [0.5, -1.0]."""
        values = _numbers(clip)
        if len(values) != self.outputs:
            raise ValueError(f"label {clip.label!r} has {len(values)} numbers, expected {self.outputs}")
        return values

    def metrics(self, clips: Sequence[Clip], outputs: np.ndarray) -> dict:
        """PCC, CCC, MSE and ACC, over all outputs and one by one."""
        return metrics.regression(np.array([self.target(c) for c in clips]), outputs, self.names)

    def prediction(self, clip: Clip, output: np.ndarray) -> dict[str, str]:
        values = super().prediction(clip, output)
        return dict(zip(["path", *self.names], values.values(), strict=True)) if self.names else values


def _numbers(clip: Clip) -> list[float]:
    try:
        values = [float(v) for v in (clip.label or "").replace(",", " ").split()]
    except ValueError:
        values = []
    if not values:
        raise ValueError(f"label {clip.label!r} is no list of numbers, which regression needs")
    return values
