"""What PSI, fine-tuning and evaluation ask of a task: what is learnt from labelled clips.

Shapes: B clips of a batch, n evaluated clips, O outputs of the model.
"""

from collections.abc import Callable, Sequence
from typing import ClassVar, Self

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from avfmae.data.batch import Batch
from avfmae.data.clip import Clip

Loss = tuple[Tensor, dict[str, Tensor]]


class Task:
    """A task; data loading sends it to worker processes, so that it must be picklable."""

    name: ClassVar[str]  # as registered
    outputs: int  # of the model: O
    select: ClassVar[str]  # the metric that chooses epochs where the user names none
    percent: ClassVar[bool] = False  # whether metrics are shares, which tables show in percent

    @property
    def lower_is_better(self) -> frozenset[str]:
        """The metrics of which the smallest value is best."""
        return frozenset()

    @classmethod
    def of_clips(cls, clips: Sequence[Clip], classes: Sequence[str] = ()) -> Self:
        """The task that these labelled clips pose; ``classes`` are the class names in order, if the user gives them."""
        raise NotImplementedError

    @classmethod
    def of_weights(cls, about: dict, outputs: int) -> Self:
        """The task of a fine-tuned model, from what :meth:`about` gave and the size of its head."""
        raise NotImplementedError

    def about(self) -> dict:
        """What :meth:`of_weights` needs besides the head's size, as JSON takes it; also written into the results."""
        return {}

    def target(self, clip: Clip) -> int | list[float]:
        """A clip's label as a number or a vector, as loaders collect them. ValueError: the label is not of this task."""
        raise NotImplementedError

    def targets(self, labels: Tensor, smoothing: float) -> Tensor:
        """``Batch.labels`` as the loss takes them, float (B, ...); ``smoothing``: share spread over all classes."""
        return labels

    def loss(self, model: Callable, batch: Batch) -> Loss:
        """The loss of a batch whose labels :meth:`targets` gave, and parts of it for the log. Here: mean square error."""
        return F.mse_loss(model(batch.video, batch.audio).logits.float(), batch.labels), {}

    def sampling_weights(self, clips: Sequence[Clip]) -> list[float]:
        """Weights with which every class is drawn equally often."""
        raise ValueError(f"class_balanced: got True, but the task {self.name!r} has no classes")

    def metrics(self, clips: Sequence[Clip], outputs: np.ndarray) -> dict:
        """Metrics of labelled clips from the model's outputs (n, O): floats by name, and JSON values that tables need."""
        raise NotImplementedError

    def pooled(self, folds: Sequence[dict]) -> dict | None:
        """Metrics of all folds' test clips together, from each fold's metrics; None where these do not suffice."""
        return None

    @classmethod
    def tables(cls, pooled: dict[str, dict]) -> dict[str, list[dict]]:
        """Tables beside the result table, rows by title; from what :meth:`pooled` gave, by the way of choosing the epoch."""
        return {}

    def prediction(self, clip: Clip, output: np.ndarray) -> dict[str, str]:
        """A row of the predictions' table, from the outputs (O,)."""
        return {"path": clip.path, **{f"output_{i}": f"{v:.4f}" for i, v in enumerate(output)}}
