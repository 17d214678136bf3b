"""A task in one file: ordinal regression, where output k says whether the clip's rank is above k."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from avfmae.tasks import TASKS
from avfmae.tasks.interface import Task


@dataclass(frozen=True)
class Ordinal(Task):
    ranks: tuple[str, ...]
    name, select = "ordinal", "MAE"
    lower_is_better = frozenset({"MAE"})

    @property
    def outputs(self):
        return len(self.ranks) - 1

    @classmethod
    def of_clips(cls, clips, classes=()):
        return cls(tuple(classes) or tuple(sorted({c.label for c in clips})))

    @classmethod
    def of_weights(cls, about, outputs):
        return cls(tuple(about["ranks"]))

    def about(self):
        return {"ranks": self.ranks}

    def target(self, clip):
        if clip.label not in self.ranks:
            raise ValueError(f"label {clip.label!r} is none of the ranks {', '.join(self.ranks)}")
        return self.ranks.index(clip.label)

    def targets(self, labels, smoothing):
        return (labels[:, None] > torch.arange(self.outputs, device=labels.device)).float()

    def loss(self, model, batch):
        return F.binary_cross_entropy_with_logits(model(batch.video, batch.audio).logits.float(), batch.labels), {}

    def metrics(self, clips, outputs):
        errors = (outputs > 0).sum(1) - np.array([self.target(c) for c in clips])
        return {"MAE": float(np.abs(errors).mean()), "exact": float((errors == 0).mean())}

    def prediction(self, clip, output):
        return {"path": clip.path, "rank": self.ranks[int((output > 0).sum())]}


TASKS["ordinal"] = Ordinal
