"""A linear probe: how much of the classes a linear map reads off the encoders' features, with nothing else trained."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from avfmae import metrics
from avfmae.checkpoints import load_released
from avfmae.config import ModelConfig
from avfmae.data.clip import Clip
from avfmae.data.config import DataConfig
from avfmae.data.dataset import ClipDataset
from avfmae.inference.predictions import predict
from avfmae.models.finetuning import AVFMAEForFinetuning, FinetuningOutput

STRENGTHS = (0.01, 0.1, 1.0, 10.0)  # of the ridge, chosen on held-out people
FOLDS = 4


class Pooled(AVFMAEForFinetuning):
    """Gives, in place of logits, the mean of each encoder's tokens before the fusion: (B, modalities·C)."""

    def forward(self, video: Tensor | None = None, audio: Tensor | None = None) -> FinetuningOutput:
        clips = {"video": video, "audio": audio}
        encoded = [getattr(self, f"{name}_encoder").encode_all(clips[name]) for name in self.cfg.modalities]
        features = torch.cat([modality.tokens.mean(1) for modality in encoded], dim=-1)
        return FinetuningOutput(features, features)


def linear_probe(
    cfg: ModelConfig, weights: Path | None, clips: Sequence[Clip], data: DataConfig, classes: Sequence[str], seed: int = 0
) -> float:
    """UAR on the clips of split ``test`` of a ridge classifier that was fitted on those of split ``train``.

    ``weights``: of any stage; None: random ones, drawn from ``seed`` as fine-tuning from scratch draws them.
    """
    torch.manual_seed(seed)
    model = Pooled(cfg, len(classes))
    if weights is not None:
        load_released(model, weights)
    dataset = ClipDataset(clips, cfg, data, "evaluate")
    found = predict(model, dataset, range(len(clips)), 16, torch.device("cpu")).outputs
    train, test = ([c for c in clips if c.split == split and c.id in found] for split in ("train", "test"))
    x = {c.id: found[c.id].astype(np.float64) for c in train + test}
    people = sorted({str(c.subject) for c in train})
    fold = {c.id: people.index(str(c.subject)) % FOLDS for c in train}

    def recall(fitted: list[Clip], scored: list[Clip], strength: float) -> float:
        (a, y), (b, truth) = (
            (np.stack([x[c.id] for c in some]), np.array([classes.index(c.label) for c in some])) for some in (fitted, scored)
        )
        return ridge_recall(a, y, b, truth, strength, len(classes))

    def held_out(strength: float) -> float:
        parts = [([c for c in train if fold[c.id] != k], [c for c in train if fold[c.id] == k]) for k in range(FOLDS)]
        return float(np.mean([recall(rest, part, strength) for rest, part in parts]))

    return recall(train, test, max(STRENGTHS, key=held_out))


def ridge_recall(x: np.ndarray, y: np.ndarray, x_test: np.ndarray, y_test: np.ndarray, strength: float, classes: int) -> float:
    """UAR of one-hot ridge regression on standardised (N, C) features; ``strength``: relative to their variance of a clip."""
    mean, spread = x.mean(0), x.std(0) + 1e-9
    a, b, targets = (x - mean) / spread, (x_test - mean) / spread, np.eye(classes)[y]
    weights = a.T @ np.linalg.solve(a @ a.T + strength * a.shape[1] * np.eye(len(a)), targets - targets.mean(0))
    predicted = (b @ weights + targets.mean(0)).argmax(1)
    return metrics.classification(metrics.confusion_matrix(y_test, predicted, classes))["UAR"]
