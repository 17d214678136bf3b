"""The parts of the published models, executed as published: plain PyTorch, one op after the other.

Attention builds its matrix of probabilities, every patch is embedded before the masks drop nine in ten, tokens are picked and put
back by boolean masks. ``sdpa`` is for the generous peer: torch's attention, and shapes that a compiler knows.
Shapes: B batch, N queries, M keys, C width, H heads, D = C/H.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avfmae.config import ModalityConfig, ModelConfig
from avfmae.models.embed import sinusoid_positions


def layer_norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=1e-6)


class PatchEmbed(nn.Module):
    """A convolution over all of the clip, (B, 3, T, H, W) or (B, 1, frames, mels) -> (B, tokens, C), and positions."""

    positions: Tensor

    def __init__(self, m: ModalityConfig, width: int):
        super().__init__()
        conv, channels = (nn.Conv3d, 3) if len(m.size) == 3 else (nn.Conv2d, 1)
        self.kernel = (channels, *m.patch)
        patch: Any = m.patch  # three sizes, or two, as the convolution has dimensions
        self.proj = conv(channels, width, kernel_size=patch, stride=patch)
        self.register_buffer("positions", sinusoid_positions(m.tokens, width), persistent=False)

    def forward(self, clip: Tensor) -> Tensor:
        x = self.proj(clip).flatten(2).transpose(1, 2)
        return x + self.positions.type_as(x).clone().detach()


def pick(x: Tensor, kept: Tensor, count: int | None) -> Tensor:
    """Tokens (B, N, C) where ``kept`` (B, N): (B, count, C). As published by a boolean index, which waits for the device to count
    them; with ``count``, which a compiler needs to know, by a gather."""
    if count is None:
        return x[kept].reshape(len(x), -1, x.shape[-1])
    index = (~kept).long().argsort(dim=1, stable=True)[:, :count]
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, sdpa: bool) -> Tensor:
    """softmax(q kᵀ/√D) v: (B, N, C), (B, M, C), (B, M, C) -> (B, N, C)."""
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))  # (B, H, N, D)
    if sdpa:
        out = F.scaled_dot_product_attention(q, k, v)
    else:
        probabilities = ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(dim=-1)
        out = probabilities @ v
    return out.transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int, sdpa: bool = False):
        super().__init__()
        self.heads, self.sdpa = heads, sdpa
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias, self.v_bias = (nn.Parameter(torch.zeros(width)) for _ in range(2))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
        q, k, v = F.linear(x, self.qkv.weight, bias).chunk(3, dim=-1)
        return self.proj(attend(q, k, v, self.heads, self.sdpa))


class CrossAttention(nn.Module):
    def __init__(self, width: int, heads: int, sdpa: bool = False):
        super().__init__()
        self.heads, self.sdpa = heads, sdpa
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(width, 2 * width, bias=False)
        self.q_bias, self.v_bias = (nn.Parameter(torch.zeros(width)) for _ in range(2))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        q = F.linear(x, self.q.weight, self.q_bias)
        bias = torch.cat([torch.zeros_like(self.v_bias), self.v_bias])
        k, v = F.linear(context, self.kv.weight, bias).chunk(2, dim=-1)
        return self.proj(attend(q, k, v, self.heads, self.sdpa))


class MLP(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class ViTBlock(nn.Module):
    """Pre-norm: cross-attention to a context where asked for, self-attention, feed-forward."""

    def __init__(self, width: int, heads: int, cross: bool = False, sdpa: bool = False):
        super().__init__()
        if cross:
            self.cross_norm, self.context_norm = layer_norm(width), layer_norm(width)
            self.cross_attn = CrossAttention(width, heads, sdpa)
        self.attn_norm, self.attn = layer_norm(width), SelfAttention(width, heads, sdpa)
        self.mlp_norm, self.mlp = layer_norm(width), MLP(width)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        if context is not None:
            x = x + self.cross_attn(self.cross_norm(x), self.context_norm(context))
        x = x + self.attn(self.attn_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class Decoder(nn.Module):
    """Mask tokens behind the visible ones; the last blocks read a skip feature each; the head reads the mask tokens."""

    positions: Tensor

    def __init__(self, cfg: ModelConfig, m: ModalityConfig, sdpa: bool = False):
        super().__init__()
        self.counts = (m.visible, m.decoded) if sdpa else (None, None)
        width = cfg.decoder_width
        self.embed = nn.Linear(cfg.width, width, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.register_buffer("positions", sinusoid_positions(m.tokens, width), persistent=False)
        self.blocks = nn.ModuleList(
            ViTBlock(width, cfg.decoder_heads, cross=i >= cfg.decoder_depth - len(cfg.skip_blocks), sdpa=sdpa)
            for i in range(cfg.decoder_depth)
        )
        self.norm = layer_norm(width)
        self.head = nn.Linear(width, torch.Size(m.patch).numel() * (3 if len(m.size) == 3 else 1))

    def forward(self, x: Tensor, skips: list[Tensor], masked: Tensor, decoded: Tensor) -> Tensor:
        """x, skips (B, visible, C); masked (B, tokens) bool: what the encoder did not see; decoded (B, tokens) bool."""
        B, _, _ = x.shape
        positions = self.positions.expand(B, -1, -1).type_as(x).clone().detach()
        seen, hidden = pick(positions, ~masked, self.counts[0]), pick(positions, decoded, self.counts[1])
        x = torch.cat([self.embed(x) + seen, self.mask_token + hidden], dim=1)
        skips = [self.embed(skip) + seen for skip in skips]
        contexts = [*[None] * (len(self.blocks) - len(skips)), *reversed(skips)]
        for block, context in zip(self.blocks, contexts, strict=True):
            x = block(x, context)
        return self.head(self.norm(x[:, -hidden.shape[1] :]))


def contrast(video: Tensor, audio: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Symmetric InfoNCE of the tokens' means; the loss, and the logits (B, B)."""
    video, audio = (F.normalize(t.mean(1), dim=-1) for t in (video, audio))
    logits = video @ audio.t() / temperature
    labels = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.t(), labels)) / 2, logits
