"""HiCMAE's fusion (Sun et al., 2024): in every layer each modality reads the other's input by cross-attention."""

from torch import Tensor, nn

from avfmae.config import ModelConfig
from avfmae.models.attention import add_norm, layer_norm
from avfmae.models.interfaces import Fusion
from avfmae.models.vit import ViTBlock


class CrossModalFusion(Fusion):
    """Per layer and modality: cross-attention to the other's input, self-attention, MLP."""

    RELEASED_NAMES = (
        (r"^video_blocks\.", "blocks."),
        (r"^audio_blocks\.", "blocks_audio."),
        (r"^video_norm\.", "norm."),
        (r"^audio_norm\.", "norm_audio."),
        *ViTBlock.RELEASED_NAMES,
    )
    finetunes = False

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.video_blocks, self.audio_blocks = (
            nn.ModuleList(ViTBlock(cfg.width, cfg.heads, cross=True) for _ in range(cfg.fusion_depth)) for _ in range(2)
        )
        self.video_norm, self.audio_norm = layer_norm(cfg.width), layer_norm(cfg.width)

    def forward(self, video: Tensor, audio: Tensor, joint: Tensor | None = None) -> tuple[Tensor, Tensor]:
        for video_block, audio_block in zip(self.video_blocks, self.audio_blocks, strict=True):
            (v, v_branch), (a, a_branch) = video_block(video, None, audio), audio_block(audio, None, video)
            video, audio = v + v_branch, a + a_branch
        return add_norm(video, None, self.video_norm)[1], add_norm(audio, None, self.audio_norm)[1]
