"""An encoder in one file: every block is one linear layer, and fine-tuning gets the mean of all tokens."""

import torch
from torch import nn

from avfmae.models.attention import layer_norm
from avfmae.models.embed import PatchEmbed
from avfmae.models.interfaces import Encoder, Features
from avfmae.models.registry import ENCODERS


class ToyEncoder(Encoder):
    RELEASED_NAMES = (*PatchEmbed.RELEASED_NAMES, (r"^blocks\.", "layers."))

    def __init__(self, cfg, m):
        super().__init__()
        self.skip_blocks = cfg.skip_blocks
        self.embed = PatchEmbed(m, cfg.width)
        self.blocks = nn.ModuleList(nn.Linear(cfg.width, cfg.width) for _ in range(cfg.depth))
        self.norm = layer_norm(cfg.width)

    def levels(self, x):
        for block in self.blocks:
            x = x + block(x).relu()
            yield self.norm(x)

    def encode_visible(self, clip, visible, boxes=None):
        levels = list(self.levels(self.embed(clip, visible, boxes)))
        return levels[-1], [levels[i] for i in self.skip_blocks], visible

    def encode_all(self, clip):
        index = torch.arange(self.embed.m.tokens, device=clip.device).expand(len(clip), -1)
        levels = list(self.levels(self.embed(clip, index)))
        return Features(levels[-1], torch.stack([level.mean(1) for level in levels], dim=1)[:, None])


ENCODERS["toy"] = ToyEncoder
