"""The plain ViT: its block, which decoders and HiCMAE's fusion are made of too, and the encoder.

Shapes: B batch, N tokens, M tokens of a context, C width, L blocks.
"""

import torch
from torch import Tensor, nn

from avfmae.config import ModalityConfig, ModelConfig
from avfmae.models.attention import MLP, CrossAttention, DropsBranches, SelfAttention, add_norm, layer_norm
from avfmae.models.embed import PatchEmbed
from avfmae.models.interfaces import Encoder, Features
from avfmae.models.recompute import run


class ViTBlock(DropsBranches):
    """Pre-norm self-attention and feed-forward; before them, where asked for, cross-attention to a context."""

    RELEASED_NAMES = (
        (r"\bcross_norm\.", "cross_norm1."),
        (r"\bcontext_norm\.", "cross_norm2."),
        (r"\battn_norm\.", "norm1."),
        (r"\bmlp_norm\.", "norm2."),
    )

    def __init__(self, width: int, heads: int, cross: bool = False, backend: str = "sdpa", drop: float = 0.0):
        super().__init__(drop)
        if cross:
            self.cross_norm, self.context_norm = layer_norm(width), layer_norm(width)
            self.cross_attn = CrossAttention(width, heads, backend)
        self.attn_norm, self.attn = layer_norm(width), SelfAttention(width, heads, backend)
        self.mlp_norm, self.mlp = layer_norm(width), MLP(width)

    def forward(
        self, x: Tensor, branch: Tensor | None, context: Tensor | None = None, last: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """x, branch (B, N, C), context (B, M, C) -> x, branch; (B, last, C) when only the last tokens are read afterwards."""
        if context is not None:
            x, read = self.cross_attn(x, branch, self.cross_norm, context, self.context_norm)
            branch = self.dropped(read)
        x, attended = self.attn(x, branch, self.attn_norm, last)
        x, fed = self.mlp(x, self.dropped(attended), self.mlp_norm)
        return x, self.dropped(fed)


class ViTEncoder(Encoder):
    """Plain blocks over the tokens of one modality."""

    RELEASED_NAMES = (*PatchEmbed.RELEASED_NAMES, *ViTBlock.RELEASED_NAMES)

    def __init__(self, cfg: ModelConfig, m: ModalityConfig):
        super().__init__()
        self.skip_blocks, self.recompute = cfg.skip_blocks, cfg.recompute
        self.embed = PatchEmbed(m, cfg.width, cfg.residual)
        rates = torch.linspace(0, cfg.drop_path, cfg.depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(ViTBlock(cfg.width, cfg.heads, drop=rate) for rate in rates)
        self.norm = layer_norm(cfg.width)

    def encode_visible(self, clip: Tensor, visible: Tensor, boxes: Tensor | None = None) -> tuple[Tensor, list[Tensor], Tensor]:
        x, branch, skips = self.embed(clip, visible, boxes), None, []
        for i, block in enumerate(self.blocks):
            x, branch = run(block, x, branch, recompute=self.recompute)
            if i in self.skip_blocks:
                skips.append(add_norm(x, branch, self.norm)[1])
        return add_norm(x, branch, self.norm)[1], skips, visible

    def encode_all(self, clip: Tensor) -> Features:
        """Levels are of one token, the mean of a block's."""
        index = torch.arange(self.embed.m.tokens, device=clip.device).expand(len(clip), -1)
        x, branch, levels = self.embed(clip, index), None, []
        for block in self.blocks:
            x, branch = run(block, x, branch, recompute=self.recompute)
            if self.needs_levels:
                levels.append(add_norm(x, branch, self.norm)[1].mean(1))
        return Features(add_norm(x, branch, self.norm)[1], torch.stack(levels, dim=1)[:, None] if levels else None)
