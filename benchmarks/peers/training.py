"""The published training step: what happens between a batch on the host and new weights.

Clips come as normalised floats. fp16 autocast with a gradient scaler (or bf16, or float32 for comparison); targets made on the
device from the un-normalised clip; torch's AdamW as it comes; a gradient norm parameter by parameter; and the loss read on the
host.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from avfmae.config import ModelConfig
from avfmae.training.config import OptimConfig
from avfmae.training.optim import parameter_groups
from avfmae_benchmarks.peers.parts import contrast
from avfmae_kernels.gather_patches import IMAGENET_MEAN, IMAGENET_STD


@dataclass
class PublishedBatch:
    """Normalised clips (B, 3, T, H, W) and spectrograms (B, 1, frames, mels), float32; of each modality a mask (B, tokens) bool,
    True = masked. The video-only models have no spectrograms.

    ``decoders``: AVF-MAE++'s decoder masks; None of the others. ``labels``: fine-tuning's soft targets (B, outputs).
    """

    video: Tensor
    audio: Tensor | None
    masks: tuple[Tensor, ...] | None = None
    decoders: tuple[Tensor, ...] | None = None
    labels: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> "PublishedBatch":
        def each(x):
            if isinstance(x, tuple):
                return tuple(map(function, x))
            return None if x is None else function(x)

        return replace(self, **{name: each(x) for name, x in vars(self).items()})


def video_targets(video: Tensor, cfg: ModelConfig) -> Tensor:
    """Standardised patches of every tubelet: (B, 3, T, H, W) -> (B, tokens, 1536). Where what changes is predicted, frames are
    subtracted in the clip's layout, to which the patches go back, and from which they are cut once more."""
    mean, std = (torch.tensor(c, device=video.device)[:, None, None, None] for c in (IMAGENET_MEAN, IMAGENET_STD))
    (p, q, r), t, h = cfg.video.patch, video.shape[2] // cfg.video.patch[0], video.shape[3] // cfg.video.patch[1]
    patches = rearrange(video * std + mean, "b c (t p) (h q) (w r) -> b (t h w) (p q r) c", p=p, q=q, r=r)
    patches = (patches - patches.mean(-2, keepdim=True)) / (patches.var(-2, keepdim=True).sqrt() + 1e-6)
    if not cfg.frame_difference:
        return patches.flatten(2)
    clip = rearrange(patches, "b (t h w) (p q r) c -> b c (t p) (h q) (w r)", t=t, h=h, p=p, q=q, r=r)
    change = clip - clip[:, :, ::p].repeat_interleave(p, dim=2)
    change[:, :, ::p] = clip[:, :, ::p]
    return rearrange(change, "b c (t p) (h q) (w r) -> b (t h w) (p q r c)", p=p, q=q, r=r)


def audio_targets(audio: Tensor, cfg: ModelConfig) -> Tensor:
    patches = rearrange(audio, "b 1 (t p) (f q) -> b (t f) (p q)", p=cfg.audio.patch[0], q=cfg.audio.patch[1])
    return (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True).sqrt() + 1e-6)


def pretraining_loss(model: Callable, cfg: ModelConfig, batch: PublishedBatch, autocast: Callable) -> Tensor:
    """Reconstruction of the modalities and λ · contrast, as each of the models defines them."""
    decoded = batch.decoders or batch.masks
    assert decoded is not None and batch.masks is not None, "masks: a batch of pre-training has them"
    with torch.no_grad():
        targets = [video_targets(batch.video, cfg), *([] if batch.audio is None else [audio_targets(batch.audio, cfg)])]
        targets = [t[~d if batch.decoders else d].reshape(len(t), -1, t.shape[-1]) for t, d in zip(targets, decoded, strict=True)]
    with autocast():
        if batch.decoders:
            *predictions, video_skips, audio_skips = model(batch.video, batch.audio, *batch.masks, *(~d for d in decoded))
        elif batch.audio is None:
            predictions, video_skips, audio_skips = [model(batch.video, *batch.masks)], (), ()
        else:
            *predictions, video_skips, audio_skips = model(batch.video, batch.audio, *batch.masks)
        loss = batch.video.new_zeros(())
        for k, (prediction, target) in enumerate(zip(predictions, targets, strict=True)):
            if batch.decoders:  # only what the encoder did not see
                error = ((prediction - target) ** 2).mean(-1)
                scored = batch.masks[k][~decoded[k]].reshape(error.shape)
                loss = loss + (error * scored).sum() / scored.sum()
            else:
                loss = loss + F.mse_loss(prediction, target)
        for v, a in zip(video_skips, audio_skips, strict=True):
            loss = loss + cfg.contrastive_weight * contrast(v, a, cfg.temperature)[0]
    return loss


def finetuning_loss(model: Callable, cfg: ModelConfig, batch: PublishedBatch, autocast: Callable) -> Tensor:
    assert batch.labels is not None, "labels: a batch of fine-tuning has them"
    with autocast():
        return F.cross_entropy(model(batch.video, batch.audio), batch.labels)


class PublishedStep:
    """One step of the published loops.

    Args:
        precision: ``"fp16"`` as published, ``"bf16"`` or ``"float32"``.
        fused: one AdamW kernel for all parameters, which the generous peer uses.
        called: what computes in place of ``model``: the same, compiled.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable,
        optim: OptimConfig,
        precision: str,
        fused: bool = False,
        called: Callable | None = None,
    ):
        self.model, self.loss, self.optim, self.fused, self.called = (
            model,
            loss,
            optim,
            fused,
            model if called is None else called,
        )
        self.device = next(model.parameters()).device
        self.precision = {"fp16": torch.float16, "bf16": torch.bfloat16, "float32": torch.float32}[precision]
        self.optimizer = torch.optim.AdamW(parameter_groups(model, optim), lr=optim.lr, betas=optim.betas, fused=fused or None)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")

    def autocast(self):
        return torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32)

    def __call__(self, batch: PublishedBatch) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = self.optim.lr * group["lr_scale"]
        batch = batch.map(lambda t: t.to(self.device, non_blocking=True))
        loss = self.loss(self.called, self.model.cfg, batch, self.autocast)
        value = loss.item()  # the loop stops at once when it is not finite
        if not math.isfinite(value):
            raise RuntimeError(f"loss is {value}")
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        if self.fused:
            norm = nn.utils.get_total_norm(gradients)
        else:
            norm = torch.norm(torch.stack([torch.norm(g.detach(), 2.0) for g in gradients]), 2.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scaler.get_scale()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        norm.item()
        return value
