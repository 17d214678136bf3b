"""What pre-training minimises: reconstruction of masked patches and hierarchical cross-modal contrast.

Shapes: B batch, N tokens, P numbers a patch. Under torch.distributed every mean runs over the clips of all processes:
a process returns its share scaled so that the processes' average is the whole batch's loss.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

import avfmae_kernels as K
from avfmae.masking import ModalityMask


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def reconstruction_loss(pred: Tensor, source: Tensor, mask: ModalityMask, patch: tuple[int, ...]) -> Tensor:
    """Mean square error against the standardised patches, averaged over the scored tokens of the whole batch (eq. 3).

    Args:
        pred: (B, Nd, P) of the decoded tokens.
        source: the uint8 clip, or the spectrogram.
        mask: which tokens these are, and which of them are scored.
    """
    count = mask.scored.sum().float()
    if world_size() > 1:
        dist.all_reduce(count)
        count = count / world_size()
    return K.masked_patch_loss(pred, source, mask.decoded, mask.scored / count, patch)


def info_nce(
    video: Tensor, audio: Tensor, temperature: float, gather: bool = True, negatives: int | None = None
) -> tuple[Tensor, Tensor]:
    """Symmetric InfoNCE between the modalities' clip features (eq. 1's contrastive term, one level).

    Args:
        video, audio: (B, C), any scale.
        temperature: τ.
        gather: contrast with the clips of all processes.
        negatives: contrast with this many other clips (the following ones, cyclically) instead of with all, so that
            the objective is the same for any batch and number of processes.

    Returns:
        The loss, and the logits v·aᵀ/τ: (B, B), or (B, all processes' B) when gathered.
    """
    video, audio = F.normalize(video.float(), dim=-1), F.normalize(audio.float(), dim=-1)
    all_video, all_audio, first = video, audio, 0
    if gather and world_size() > 1:
        from torch.distributed.nn.functional import all_gather

        all_video, all_audio = torch.cat(all_gather(video)), torch.cat(all_gather(audio))
        first = dist.get_rank() * len(video)
    by_video, by_audio = video @ all_audio.T / temperature, audio @ all_video.T / temperature
    labels = torch.arange(first, first + len(video), device=video.device)
    if negatives is None:
        loss = (F.cross_entropy(by_video, labels) + F.cross_entropy(by_audio, labels)) / 2
        return loss, by_video
    if negatives >= len(all_video):
        raise ValueError(f"negatives: {negatives} other clips were asked for, but the batch has {len(all_video) - 1}")
    others = (labels[:, None] + torch.arange(negatives + 1, device=labels.device)) % len(all_video)  # itself first
    itself = torch.zeros_like(labels)
    loss = (
        F.cross_entropy(by_video.gather(1, others), itself) + F.cross_entropy(by_audio.gather(1, others), itself)
    ) / 2
    return loss, by_video
