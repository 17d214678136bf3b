"""Clips on their way to the model: what the loader gives, and what the training step is called with.

Nothing here decodes, crops or draws, so that a step can be run, and measured, where no decoder is installed.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from avfmae.masking import DualMask

if TYPE_CHECKING:
    from avfmae.data.augment import Draw


@dataclass
class Raw:
    """Clips as they are stored, and what is to be done to them. N windows; each gives ``crops`` views.

    Attributes:
        frames: (N, T, H, W, 3) uint8 as decoded, or (N·crops, T, H, W, 3) cut already, where ``boxes`` is None.
        boxes: (N·crops, 4) float32: left, top, right, bottom of each view.
        filter: ``"bilinear"`` or ``"bicubic"``, of the crop.
        draws: what training with labels does to each clip, or None.
        sound: (N, samples) float32, 16 kHz; lengths: (N,) int64, how many of these each has.
        shift, gain: (N,) pre-training's of the sound, or None.
        crops: views of each window.
    """

    frames: Tensor | None = None
    boxes: Tensor | None = None
    filter: str = "bilinear"
    draws: "list[Draw] | None" = None
    sound: Tensor | None = None
    lengths: Tensor | None = None
    shift: Tensor | None = None
    gain: Tensor | None = None
    crops: int = 1

    def map(self, function: Callable[[Tensor], Tensor]) -> "Raw":
        """The same with ``function`` of every tensor."""
        tensors = {n: getattr(self, n) for n in ("frames", "boxes", "sound", "lengths", "shift", "gain")}
        return replace(self, **{n: function(t) for n, t in tensors.items() if t is not None})


@dataclass(frozen=True)
class Bad:
    """A clip that was set aside."""

    id: int
    path: str
    reason: str


@dataclass
class Batch:
    """Clips on their way to the model.

    Attributes:
        video: (B, T, H, W, 3) uint8, or None where the model does not look; evaluation: B·views.
        audio: (B, 1, frames, mels) float32, or None.
        labels: (B,) int64 classes or (B, outputs) float32 values, or None in pre-training.
        masks: pre-training's.
        clips: ids of the clips that are in it.
        views: evaluation views a clip, consecutive in ``video`` and ``audio``.
        bad: clips that were to be in it and are not.
        boxes: (B, 4) float32, what the model sees of ``video`` (left, top, right, bottom); None: all of it.
        raw: what ``video`` and ``audio`` will be made of (:func:`avfmae.data.preprocess.preprocess`), or None when they are.
    """

    video: Tensor | None
    audio: Tensor | None
    labels: Tensor | None
    masks: DualMask | None
    clips: list[int]
    views: int = 1
    bad: list[Bad] = field(default_factory=list)
    boxes: Tensor | None = None
    raw: Raw | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        """The same batch with ``function`` of every tensor."""
        tensors = {n: getattr(self, n) for n in ("video", "audio", "labels", "boxes")}
        parts = {n: getattr(self, n) for n in ("masks", "raw")}
        return replace(self, **{n: function(t) for n, t in tensors.items() if t is not None},
                       **{n: p.map(function) for n, p in parts.items() if p is not None})  # fmt: skip

    def tensors(self) -> list[Tensor]:
        found: list[Tensor] = []
        self.map(lambda t: found.append(t) or t)
        return found

    def to(self, device: torch.device) -> "Batch":
        return self.map(lambda t: t.to(device, non_blocking=True))
