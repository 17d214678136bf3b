"""masked_patch_loss in PyTorch: oracle, fallback, documentation."""

import torch
from einops import rearrange
from torch import Tensor

from avfmae_kernels.crop_clips.reference import crop_clips


def patch_targets(
    source: Tensor, index: Tensor, patch: list[int], boxes: Tensor | None = None, size: list[int] | None = None
) -> Tensor:
    """The standardised targets (B, N, P) that masked_patch_loss compares with; those of tokens outside the source are NaN."""
    if boxes is not None:
        source = crop_clips(source, boxes, size)
    if source.ndim == 4:
        x = rearrange(source, "b 1 (h p) (w q) -> b (h w) 1 1 (p q)", p=patch[0], q=patch[1])
    else:
        pt, ph, pw = patch
        x = rearrange(source, "b (t pt) (h ph) (w pw) c -> b (t h w) c pt (ph pw)", pt=pt, ph=ph, pw=pw)
    outside = (index < 0) | (index >= x.shape[1])
    x = x[torch.arange(len(x), device=x.device)[:, None], index.masked_fill(outside, 0)]  # (B, N, c, pt, S)
    if source.dtype == torch.uint8:
        x = x.float() / 255
    pixels = x.flatten(3)
    x = (x - pixels.mean(-1)[..., None, None]) / (pixels.std(-1)[..., None, None] + 1e-6)
    x = torch.cat([x[:, :, :, :1], x.diff(dim=3)], dim=3)  # every frame but the first: what changed
    return rearrange(x, "b n c t s -> b n (t s c)").masked_fill(outside[..., None], torch.nan)


def masked_patch_loss(
    pred: Tensor, source: Tensor, index: Tensor, scored: Tensor, patch: list[int], boxes: Tensor | None = None,
    size: list[int] | None = None,
) -> Tensor:  # fmt: skip
    """Mean square error of every scored token, 0 for the others: (B, N) float32."""
    target = patch_targets(source, index, patch, boxes, size)
    error = (pred.to(target.dtype) - target).square().mean(-1)
    return torch.where(scored, error, 0)


def masked_patch_loss_backward(
    grad: Tensor, pred: Tensor, source: Tensor, index: Tensor, scored: Tensor, patch: list[int], boxes: Tensor | None = None,
    size: list[int] | None = None,
) -> Tensor:  # fmt: skip
    """Gradient to ``pred`` of the errors with upstream gradient (B, N)."""
    target = patch_targets(source, index, patch, boxes, size)
    grad_pred = 2 / pred.shape[-1] * (pred.to(target.dtype) - target) * grad[..., None]
    return torch.where(scored[..., None], grad_pred, 0).to(pred.dtype)
