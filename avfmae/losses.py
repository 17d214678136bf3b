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
from avfmae.masking import ModalityMask
from avfmae.world import rank, world_size


def reconstruction_loss(
    pred: Tensor, source: Tensor, mask: ModalityMask, patch: tuple[int, ...], boxes: Tensor | None = None,
    size: tuple[int, ...] | None = None, frame_difference: bool = True,
) -> Tensor:  # fmt: skip
    """Mean square error against the standardised patches, averaged over the scored tokens of the whole batch (eq. 3).

    Args:
        pred: (B, Nd, P) of the decoded tokens.
        source: the uint8 clip, or the spectrogram.
        mask: which tokens these are, and which of them are scored.
        boxes, size: what is seen of each clip, at which (H, W); None: all of it, as it is.
        frame_difference: of a clip's patches, compare with the first frame and each one's difference to the frame before; else
            with all frames.
    """
    if source.ndim == 5 and not frame_difference:  # a tubelet's frames one below the other are a patch of one frame
        frames, *side = patch
        source = source if boxes is None else K.crop_clips(source, boxes, size or source.shape[2:4])
        source = rearrange(source, "b (t f) (h p) w c -> b t (h f p) w c", f=frames, p=side[0])
        patch, boxes, size = (1, frames * side[0], side[1]), None, None
    count = mask.scored.sum().float()
    if world_size() > 1:
        dist.all_reduce(count)
        count = count / world_size()
    return K.masked_patch_loss(pred, source, mask.decoded, mask.scored / count, patch, boxes, size)


class Gathered:
    """Features (K, B, C) of all processes, on their way; other work goes on meanwhile."""

    def __init__(self, features: Tensor):
        self.work: list = []
        self.everything = _Gather.apply(features.transpose(0, 1).contiguous(), self.work)

    def arrived(self) -> Tensor:
        """(K, processes' B, C), in order of rank."""
        while self.work:
            self.work.pop().wait()
        return self.everything.transpose(0, 1)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, mine, work):
        everything = mine.new_empty(len(mine) * world_size(), *mine.shape[1:])
        work.append(dist.all_gather_into_tensor(everything, mine, async_op=True))
        return everything

    @staticmethod
    def backward(ctx, grad):
        grad = grad.contiguous()
        dist.all_reduce(grad)  # what the other processes' losses say of these clips
        return grad.chunk(world_size())[rank()], None


def info_nce(
    video: Tensor, audio: Tensor, temperature: float, negatives: int | None = None, everyone: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Symmetric InfoNCE between the modalities' clip features (eq. 1's contrastive term), of one level or of several at once.

    Args:
        video, audio: (..., B, C) float32, of length 1; what comes first counts levels.
        temperature: τ.
        negatives: contrast with this many other clips (the following ones, cyclically) instead of with all, so that
            the objective is the same for any batch and number of processes.
        everyone: the video and audio features of all processes' clips, in order of rank; None: there is one process, or
            it contrasts its own clips only.

    Returns:
        The loss, added up over levels, and the logits v·aᵀ/τ: (..., B, B), or (..., B, all processes' B).
    """
    all_video, all_audio = everyone or (video, audio)
    count, total = video.shape[-2], all_video.shape[-2]
    first = rank() * count if everyone else 0
    by_video, by_audio = video @ all_audio.mT / temperature, audio @ all_video.mT / temperature
    labels = torch.arange(first, first + count, device=video.device)
    compared = [by_video, by_audio]
    if negatives is not None:
        if negatives >= total:
            raise ValueError(f"negatives: {negatives} other clips were asked for, but the batch has {total - 1}")
        others = (labels[:, None] + torch.arange(negatives + 1, device=labels.device)) % total  # itself first
        compared = [logits.gather(-1, others.expand(*logits.shape[:-1], -1)) for logits in compared]
        labels = torch.zeros_like(labels)
    labels = labels.expand(video.shape[:-1]).flatten()
    losses = [F.cross_entropy(logits.flatten(0, -2), labels, reduction="sum") for logits in compared]
    return (losses[0] + losses[1]) / (2 * count), by_video
