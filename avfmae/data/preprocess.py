"""From clips as the workers read them to what the model is given: done for a whole batch, on its device, a CPU or a GPU alike.

Workers only read and decode, and draw what is random. Crops, colours and spectrograms are made here. Pre-training goes further:
its crops are not made at all, but handed on as boxes to the kernels that read the clip.
"""

from dataclasses import replace

from avfmae.config import ModelConfig
from avfmae.data import augment
from avfmae.data.audio import model_inputs, roll_mag
from avfmae.data.batch import Batch
from avfmae_kernels import crop_clips


def preprocess(batch: Batch, cfg: ModelConfig, fused: bool = False) -> Batch:
    """A batch's ``video`` and ``audio`` of what was read. ``fused``: crops, which ``boxes`` tell, are left to the kernels."""
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
