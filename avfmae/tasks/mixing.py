"""Mixup and cutmix on both modalities alike: the same share λ and the same partners for picture, sound and label."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from avfmae.data.batch import Batch


def mix(
    batch: Batch, targets: Tensor, rng: np.random.Generator, mixup: float, cutmix: float, switch: float
) -> tuple[Batch, Tensor]:
    """Blends every clip with its mirror in the batch.

    Mixup (Zhang et al., 2018) blends pixels and spectrograms by λ; the video stays uint8, rounded. Cutmix (Yun et al.,
    2019) puts a rectangle of the partner's frames into every frame, and a run of the partner's spectrogram, of the same
    share of time, into the sound.

    Args:
        batch: of at least two clips, or nothing happens.
        targets: (B, outputs), one-hot (smoothed or not) or regression values.
        mixup, cutmix: Beta parameters; 0: never. switch: share of batches that get cutmix where both are on.

    Returns:
        The mixed batch, and the targets λ·own + (1 − λ)·partner's.
    """
    if len(targets) < 2 or not (mixup or cutmix):
        return batch, targets
    if cutmix and (not mixup or rng.random() < switch):
        video, audio, share = _cut(batch.video, batch.audio, rng.beta(cutmix, cutmix), rng)
    else:
        share, video, audio = rng.beta(mixup, mixup), batch.video, batch.audio
        if video is not None:
            video = torch.lerp(video.flip(0).float(), video.float(), share).round().to(torch.uint8)
        if audio is not None:
            audio = torch.lerp(audio.flip(0), audio, share)
    return replace(batch, video=video, audio=audio), torch.lerp(targets.flip(0), targets, share)


def _cut(video: Tensor | None, audio: Tensor | None, share: float, rng: np.random.Generator):
    """A rectangle of 1 − share of the frame; ``share`` returned is what the frame's edge really left."""
    if video is not None:
        height, width = video.shape[2:4]
        side = np.sqrt(1 - share)
        y, x = rng.integers(height), rng.integers(width)
        top, bottom = np.clip([y - height * side / 2, y + height * side / 2], 0, height).astype(int)
        left, right = np.clip([x - width * side / 2, x + width * side / 2], 0, width).astype(int)
        partner, video = video.flip(0), video.clone()
        video[:, :, top:bottom, left:right] = partner[:, :, top:bottom, left:right]
        share = 1 - (bottom - top) * (right - left) / (height * width)
    if audio is not None:
        frames = audio.shape[2]
        run = round((1 - share) * frames)
        first = rng.integers(frames - run + 1)
        partner, audio = audio.flip(0), audio.clone()
        audio[:, :, first : first + run] = partner[:, :, first : first + run]
    return video, audio, share
