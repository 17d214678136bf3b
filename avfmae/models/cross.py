"""HiCMAE's fusion (Sun et al., 2024): in every layer each modality reads the other's input by cross-attention."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from avfmae.config import ModelConfig
from avfmae.models.attention import add_norm, layer_norm
from avfmae.models.interfaces import Fusion
from avfmae.models.vit import ViTBlock


def cross_blocks(cfg: ModelConfig) -> nn.ModuleList:
    """The layers of one modality, with stochastic depth that grows over them."""
    rates = torch.linspace(0, cfg.drop_path, cfg.fusion_depth, device="cpu").tolist()
    return nn.ModuleList(ViTBlock(cfg.width, cfg.heads, cross=True, drop=rate) for rate in rates)


def read_each_other(
    video_blocks: nn.ModuleList, audio_blocks: nn.ModuleList, video: Tensor, audio: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Every layer's output, video (B, N, C) and audio (B, M, C)."""
    for video_block, audio_block in zip(video_blocks, audio_blocks, strict=True):
        (v, v_branch), (a, a_branch) = video_block(video, None, audio), audio_block(audio, None, video)
        video, audio = v + v_branch, a + a_branch
        yield video, audio


class NoFusion(Fusion):
    """The modalities do not see each other; a model of one modality has no other."""

    def __init__(self, cfg: ModelConfig):
        super().__init__()

    def forward(self, video: Tensor, audio: Tensor, joint: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return video, audio


class CrossModalFusion(Fusion):
    """Per layer and modality: cross-attention to the other's input, self-attention, MLP."""

    RELEASED_NAMES = (
        (r"^video_blocks\.", "blocks."),
        (r"^audio_blocks\.", "blocks_audio."),
        (r"^video_norm\.", "norm."),
        (r"^audio_norm\.", "norm_audio."),
        *ViTBlock.RELEASED_NAMES,
    )
    beside_unimodal = True

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.video_blocks, self.audio_blocks = cross_blocks(cfg), cross_blocks(cfg)
        self.video_norm, self.audio_norm = layer_norm(cfg.width), layer_norm(cfg.width)

    def forward(self, video: Tensor, audio: Tensor, joint: Tensor | None = None) -> tuple[Tensor, Tensor]:
        *_, (video, audio) = read_each_other(self.video_blocks, self.audio_blocks, video, audio)
        return add_norm(video, None, self.video_norm)[1], add_norm(audio, None, self.audio_norm)[1]
