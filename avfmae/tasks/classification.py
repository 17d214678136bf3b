"""One class a clip: soft-target cross-entropy, and recalls."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from avfmae import metrics
from avfmae.data.batch import Batch
from avfmae.data.clip import Clip
from avfmae.tasks.interface import Loss, Task


@dataclass(frozen=True)
class Classification(Task):
    """``classes``: their names in index order."""

    classes: tuple[str, ...]
    name, select, percent = "classification", "UAR", True

    @property
    def outputs(self) -> int:
        return len(self.classes)

    @classmethod
    def of_clips(cls, clips: Sequence[Clip], classes: Sequence[str] = ()) -> Self:
        """Without ``classes`` the labels that occur: in numerical order where all are numbers, else in alphabetical."""
        names = {c.label for c in clips}
        try:
            found = sorted(names, key=float)
        except ValueError:
            found = sorted(names)
        return cls(tuple(classes or found))

    @classmethod
    def of_weights(cls, about: dict, outputs: int) -> Self:
        return cls(tuple(about["classes"]))

    def about(self) -> dict:
        return {"classes": self.classes}

    def target(self, clip: Clip) -> int | list[float]:
        return self.number(clip)

    def number(self, clip: Clip) -> int:
        """The clip's class. ValueError: it is none of the classes."""
        if clip.label not in self.classes:
            raise ValueError(f"label {clip.label!r} is none of the classes {', '.join(self.classes)}")
        return self.classes.index(clip.label)

    def targets(self, labels: Tensor, smoothing: float) -> Tensor:
        """(B,) class numbers -> (B, classes) shares."""
        return F.one_hot(labels, self.outputs) * (1 - smoothing) + smoothing / self.outputs

    def loss(self, model: Callable, batch: Batch) -> Loss:
        """Soft-target cross-entropy; accuracy is the share of clips whose largest target is predicted."""
        logits = model(batch.video, batch.audio).logits.float()
        accuracy = (logits.argmax(-1) == batch.labels.argmax(-1)).float().mean()
        return F.cross_entropy(logits, batch.labels), {"accuracy": accuracy}

    def sampling_weights(self, clips: Sequence[Clip]) -> list[float]:
        counts = Counter(c.label for c in clips)
        return [1 / counts[c.label] for c in clips]

    def metrics(self, clips: Sequence[Clip], outputs: np.ndarray) -> dict:
        """UAR, WAR, WF1, UF1; ``recall`` by class (None: no clip has it); ``confusion``, rows truth, columns prediction."""
        truth = np.array([self.number(c) for c in clips])
        return self.of_confusion(metrics.confusion_matrix(truth, outputs.argmax(1), self.outputs))

    def of_confusion(self, confusion: np.ndarray) -> dict:
        recall = dict(zip(self.classes, metrics.recalls(confusion), strict=True))
        return {**metrics.classification(confusion), "recall": recall, "confusion": confusion.tolist()}

    def pooled(self, folds: Sequence[dict]) -> dict:
        return self.of_confusion(np.sum([fold["confusion"] for fold in folds], axis=0))

    @classmethod
    def tables(cls, pooled: dict[str, dict]) -> dict[str, list[dict]]:
        """Recall of each class."""
        first = next(iter(pooled.values()))
        rows = [
            {"class": name, "clips": str(sum(row))} | {title: percent(m["recall"][name]) for title, m in pooled.items()}
            for name, row in zip(first["recall"], first["confusion"], strict=True)
        ]
        return {"Recall of each class, in %": rows}

    def prediction(self, clip: Clip, output: np.ndarray) -> dict[str, str]:
        """The class predicted, and every class's softmax share."""
        shares = np.exp(output - output.max())
        shares /= shares.sum()
        named = {c: f"{p:.4f}" for c, p in zip(self.classes, shares, strict=True)}
        return {"path": clip.path, "prediction": self.classes[int(output.argmax())], **named}


def percent(share: float | None) -> str:
    return "none" if share is None else f"{100 * share:.1f}"
