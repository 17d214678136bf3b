"""From clips as the workers read them to what the model is given: done for a whole batch, on its device, a CPU or a GPU alike.

Workers only read and decode, and draw what is random. Crops, colours and spectrograms are made here. Pre-training goes further: its
crops are not made at all, but handed on as boxes to the kernels that read the clip.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

from avfmae.config import ModelConfig
from avfmae.data import augment
from avfmae.data.audio import model_inputs, roll_mag
from avfmae_kernels import crop_clips

if TYPE_CHECKING:
    from avfmae.data.dataset import Batch


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
    draws: list[augment.Draw] | None = None
    sound: Tensor | None = None
    lengths: Tensor | None = None
    shift: Tensor | None = None
    gain: Tensor | None = None
    crops: int = 1

    def map(self, function: Callable[[Tensor], Tensor]) -> "Raw":
        """The same with ``function`` of every tensor."""
        tensors = {n: getattr(self, n) for n in ("frames", "boxes", "sound", "lengths", "shift", "gain")}
        return replace(self, **{n: function(t) for n, t in tensors.items() if t is not None})


def preprocess(batch: "Batch", cfg: ModelConfig, fused: bool = False) -> "Batch":
    """Makes a batch's ``video`` and ``audio`` of what was read of its clips.

    Args:
        fused: leave crops to the kernels: ``video`` is the stored frames, and ``boxes`` say what to look at.
    """
    raw = batch.raw
    if raw is None:
        return batch
    video, boxes = raw.frames, raw.boxes
    if boxes is not None and not fused:
        video, boxes = crop_clips(video, boxes, cfg.video.size[1:], raw.filter), None
    if raw.draws is not None and video is not None:
        video = augment.apply(video, raw.draws)
    audio = None
    if raw.sound is not None:
        sound = raw.sound if raw.shift is None else roll_mag(raw.sound, raw.lengths, raw.shift, raw.gain)
        audio = model_inputs(sound, raw.lengths, cfg.audio.size[0]).repeat_interleave(raw.crops, 0)
    return replace(batch, video=video, boxes=boxes, audio=audio, raw=None)
