"""What pre-training minimises: reconstruction of masked patches and hierarchical cross-modal contrast.

Shapes: B batch, N tokens, P numbers a patch. Under torch.distributed every mean runs over the clips of all processes:
a process returns its share scaled so that the processes' average is the whole batch's loss.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

import avfmae_kernels as K
from avfmae.models.embed import audio_patches, take_tokens


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def video_target(video: Tensor, index: Tensor, patch: tuple[int, int, int]) -> Tensor:
    """Standardised frame-difference target of the tubelets at ``index``: (B, N, P), ordered (time, row, column, rgb).

    Pixels in 0..1 are standardised per tubelet and channel, (x − mean)/(√var + 1e-6) with the unbiased variance over
    the tubelet's pixels; then every frame but the first becomes its difference to the one before.
    """
    x = K.gather_patches(video, index, patch=patch, mean=(0, 0, 0), std=(1, 1, 1))
    x = rearrange(x, "b n (c p) -> b n c p", c=3)
    x = (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-6)
    x = rearrange(x, "b n c (t s) -> b n t (s c)", t=patch[0])
    return torch.cat([x[:, :, :1], x.diff(dim=2)], dim=2).flatten(2)


def audio_target(audio: Tensor, index: Tensor, patch: tuple[int, int]) -> Tensor:
    """Per-patch standardised log-mel patches at ``index``: (B, N, P)."""
    x = take_tokens(audio_patches(audio.float(), patch), index)
    return (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-6)


def masked_mse(pred: Tensor, target: Tensor, scored: Tensor) -> Tensor:
    """Mean square error per token, averaged over the scored tokens of the whole batch (eq. 3)."""
    per_token = (pred.float() - target).square().mean(-1)
    count = scored.sum().float()
    if world_size() > 1:
        dist.all_reduce(count)
        count = count / world_size()
    return (per_token * scored).sum() / count


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
