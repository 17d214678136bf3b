"""Clips of several classes: shares of each (blended emotions, votes of raters), or classes that are there or not."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from avfmae import metrics
from avfmae.data.batch import Batch
from avfmae.data.clip import Clip
from avfmae.tasks.classification import Classification
from avfmae.tasks.interface import Loss

WEIGHTED = re.compile(r"(.*?)(?:\s*[:=]\s*|\s+|^)(\d*\.?\d+)")  # anger 0.7, anger: 3; but AU12 is a name


def parts(label: str | None) -> dict[str, float]:
    """``"anger 0.7, fear 0.3"``, ``"anger: 3 | fear: 1"`` or ``"anger+fear"``: class -> its weight, 1 where none is given.

    Raises:
        ValueError: it is no such label.
    """
    found = {}
    for part in filter(None, (p.strip() for p in re.split(r"[,+;|]", label or ""))):
        name, weight = match.groups() if (match := WEIGHTED.fullmatch(part)) else (part, 1)
        found[name] = found.get(name, 0.0) + float(weight)
    if not found or "" in found or sum(found.values()) <= 0:
        raise ValueError(f"label {label!r} names no classes, expected such as 'anger 0.7, fear 0.3' or 'anger+fear'")
    return found


@dataclass(frozen=True)
class Soft(Classification):
    """Each clip's classes have shares of it, which the model's softmax is to match. Recalls are of the largest share."""

    name = "soft"

    @classmethod
    def of_clips(cls, clips: Sequence[Clip], classes: Sequence[str] = ()) -> Self:
        return cls(tuple(classes) or tuple(sorted({name for c in clips for name in parts(c.label)})))

    def target(self, clip: Clip) -> list[float]:
        weights = self.weights(clip)
        return [weight / sum(weights) for weight in weights]

    def weights(self, clip: Clip) -> list[float]:
        """Of each class, in order."""
        found = parts(clip.label)
        if unknown := found.keys() - set(self.classes):
            raise ValueError(f"label {clip.label!r}: {sorted(unknown)[0]!r} is none of the classes {', '.join(self.classes)}")
        return [found.get(name, 0.0) for name in self.classes]

    def targets(self, labels: Tensor, smoothing: float) -> Tensor:
        return labels.float() * (1 - smoothing) + smoothing / self.outputs

    def sampling_weights(self, clips: Sequence[Clip]) -> list[float]:
        """By the class of the largest share."""
        largest = [int(np.argmax(self.target(c))) for c in clips]
        return [1 / count for count in np.bincount(largest)[largest]]

    def metrics(self, clips: Sequence[Clip], outputs: np.ndarray) -> dict:
        """Those of classification, and ``overlap``: what truth and prediction have in common, Σ min, in 0..1."""
        truth = np.array([self.target(c) for c in clips])
        shares = np.exp(outputs - outputs.max(1, keepdims=True))
        overlap = float(np.minimum(truth, shares / shares.sum(1, keepdims=True)).sum(1).mean())
        confusion = metrics.confusion_matrix(truth.argmax(1), outputs.argmax(1), self.outputs)
        return self.of_confusion(confusion) | {"overlap": overlap}


@dataclass(frozen=True)
class MultiLabel(Soft):
    """Each class is there or not, on its own: sigmoids, predicted where they are above a half."""

    name, select = "multilabel", "mAP"

    def target(self, clip: Clip) -> list[float]:
        return [float(weight > 0) for weight in self.weights(clip)]

    def targets(self, labels: Tensor, smoothing: float) -> Tensor:
        return labels.float() * (1 - smoothing) + smoothing / 2

    def loss(self, model: Callable, batch: Batch) -> Loss:
        assert batch.labels is not None, "labels: are needed for the loss"
        return F.binary_cross_entropy_with_logits(model(batch.video, batch.audio).logits.float(), batch.labels), {}

    def metrics(self, clips: Sequence[Clip], outputs: np.ndarray) -> dict:
        return metrics.multilabel(np.array([self.target(c) for c in clips]) > 0, outputs)

    def pooled(self, folds: Sequence[dict]) -> None:
        return None

    def prediction(self, clip: Clip, output: np.ndarray) -> dict[str, str]:
        there = "+".join(name for name, value in zip(self.classes, output, strict=True) if value > 0)
        shares = 1 / (1 + np.exp(-output))
        return {"path": clip.path, "prediction": there, **{c: f"{p:.4f}" for c, p in zip(self.classes, shares, strict=True)}}
