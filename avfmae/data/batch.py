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
    """Clips as they are stored, and what is to be done to them. N windows; each gives ``crops`` views."""

    frames: Tensor | None = None  # (N, T, H, W, 3) uint8 as decoded; (N·crops, T, H, W, 3) cut already, where boxes is None
    boxes: Tensor | None = None  # (N·crops, 4) float32: left, top, right, bottom of each view
    filter: str = "bilinear"  # or "bicubic", of the crop
    draws: "list[Draw] | None" = None  # what training with labels does to each clip
    sound: Tensor | None = None  # (N, samples) float32, 16 kHz
    lengths: Tensor | None = None  # (N,) int64, how many samples each has
    shift: Tensor | None = None  # (N,), of the sound in pre-training
    gain: Tensor | None = None  # (N,), of the sound in pre-training
    crops: int = 1  # views of each window

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
    """Clips on their way to the model."""

    video: Tensor | None  # (B, T, H, W, 3) uint8, or None where the model does not look; evaluation: B·views
    audio: Tensor | None  # (B, 1, frames, mels) float32, or None
    labels: Tensor | None  # (B,) int64 classes or (B, outputs) float32 values, or None in pre-training
    masks: DualMask | None  # pre-training's
    clips: list[int]  # ids of the clips that are in it
    views: int = 1  # of a clip in evaluation, consecutive in video and audio
    bad: list[Bad] = field(default_factory=list)  # clips that were to be in it and are not
    boxes: Tensor | None = None  # (B, 4) float32, what the model sees of video (left, top, right, bottom); None: all of it
    flags: dict[int, str] = field(default_factory=dict)  # by clip id, what is odd about clips, as ``avfmae prepare`` names it
    raw: Raw | None = None  # what video and audio will be made of (avfmae.data.preprocess.preprocess), or None when they are

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
