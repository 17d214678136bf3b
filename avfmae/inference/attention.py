"""Where a model's encoders look and listen: how the attention of their last block is spread over patches and regions."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from avfmae.models.attention import SelfAttention
from avfmae.models.finetuning import AVFMAEForFinetuning
from avfmae.models.pretraining import AVFMAEForPretraining


@torch.no_grad()
def attention_maps(
    model: AVFMAEForFinetuning | AVFMAEForPretraining, video: Tensor | None, audio: Tensor | None
) -> dict[str, Tensor]:
    """The share of the last block's attention that each patch has, as the mean over heads and queries.

    Of an encoder with regions, a patch has its share of what its region's token reads of the region (stage I), times the
    region's share of what all region tokens read of each other (stage II).

    Args:
        video: (B, T, H, W, 3) uint8, or None. audio: (B, 1, frames, mels), or None.

    Returns:
        By modality, (B, T, H, W) of video and (B, T, F) of sound, by patch; they sum to 1.
    """
    found = {}
    for name, clip in (("video", video), ("audio", audio)):
        if name in model.cfg.modalities:
            encoder: Any = getattr(model, f"{name}_encoder")
            with _watched(encoder.blocks[-1]) as read:
                encoder.encode_all(clip)
            if "region_attn" in read:
                regions = read["region_attn"].mean((1, 2))  # (B, heads, R, R) -> (B, R)
                inside = read["local_attn"].mean(1).unflatten(0, (-1, encoder.regions))[:, :, 0, 1:]  # (B, R, S - 1)
                shares = (regions[..., None] * inside / inside.sum(-1, keepdim=True)).flatten(1)
                shares = torch.zeros_like(shares).index_copy(1, encoder.region_of.argsort(stable=True), shares)
            else:
                shares = read["attn"].mean((1, 2))
            found[name] = _on_grid(shares, getattr(model.cfg, name).grid)
    return found


@contextmanager
def _watched(block: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Collects the (·, heads, N, N) weights of a block's self-attentions by name. One thread at a time may use the model."""
    read: dict[str, Tensor] = {}
    watched = {name: part for name, part in block.named_children() if isinstance(part, SelfAttention)}

    def watch(name: str, part: SelfAttention) -> None:
        def attend(qkv: Tensor) -> Tensor:
            q, k, _ = (t.unflatten(-1, (part.heads, -1)).transpose(1, 2) for t in qkv.flatten(0, -3).chunk(3, dim=-1))
            read[name] = (q.float() @ k.float().mT * q.shape[-1] ** -0.5).softmax(-1)
            return SelfAttention.attend(part, qkv)

        part.attend = attend

    for name, part in watched.items():
        watch(name, part)
    try:
        yield read
    finally:
        for part in watched.values():
            del part.attend


def _on_grid(shares: Tensor, grid: tuple[int, ...]) -> Tensor:
    """(B, N) -> (B, *grid). An encoder may have fewer time steps in its last block, each of which stands for several."""
    shares = shares.unflatten(1, (-1, *grid[1:]))
    times = grid[0] // shares.shape[1]
    return shares.repeat_interleave(times, dim=1) / times
