"""HiCMAE (Sun et al., 2024), the predecessor and baseline: plain ViT encoders, cross-attention fusion, encoder masks only."""

from torch import Tensor, nn

from avfmae.config import ModalityConfig, ModelConfig
from avfmae.models.attention import add_norm, layer_norm
from avfmae.models.decoder import ViTBlock
from avfmae.models.embed import PatchEmbed
from avfmae.models.pretraining import MaskedAutoencoder
from avfmae.models.recompute import run


class ViTEncoder(nn.Module):
    """L plain blocks over the visible tokens of one modality."""

    def __init__(self, cfg: ModelConfig, m: ModalityConfig):
        super().__init__()
        self.skip_blocks, self.recompute = cfg.skip_blocks, cfg.recompute
        self.embed = PatchEmbed(m, cfg.width)
        self.blocks = nn.ModuleList(ViTBlock(cfg.width, cfg.heads) for _ in range(cfg.depth))
        self.norm = layer_norm(cfg.width)

    def encode_visible(self, clip: Tensor, visible: Tensor, boxes: Tensor | None = None) -> tuple[Tensor, list[Tensor], Tensor]:
        """LN(tokens) of the last block (B, N, C), of the skip blocks, and the tokens' index (B, N)."""
        x, branch, skips = self.embed(clip, visible, boxes), None, []
        for i, block in enumerate(self.blocks):
            x, branch = run(block, x, branch, recompute=self.recompute)
            if i in self.skip_blocks:
                skips.append(add_norm(x, branch, self.norm)[1])
        return add_norm(x, branch, self.norm)[1], skips, visible


class CrossModalFusion(nn.Module):
    """Per layer and modality: cross-attention to the other's input, self-attention, MLP."""

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.video_blocks, self.audio_blocks = (
            nn.ModuleList(ViTBlock(cfg.width, cfg.heads, cross=True) for _ in range(cfg.fusion_depth)) for _ in range(2)
        )
        self.video_norm, self.audio_norm = layer_norm(cfg.width), layer_norm(cfg.width)

    def forward(self, video: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        for video_block, audio_block in zip(self.video_blocks, self.audio_blocks, strict=True):
            (v, v_branch), (a, a_branch) = video_block(video, None, audio), audio_block(audio, None, video)
            video, audio = v + v_branch, a + a_branch
        return add_norm(video, None, self.video_norm)[1], add_norm(audio, None, self.audio_norm)[1]


class HiCMAEForPretraining(MaskedAutoencoder):
    """HiCMAE with its decoders; masks without decoder parts, so that the decoder predicts all that is hidden.

    Args:
        cfg: of family ``"hicmae"``.
    """

    def __init__(self, cfg: ModelConfig):
        if cfg.family != "hicmae":
            raise ValueError(f"cfg: family {cfg.family!r}, expected 'hicmae'")
        super().__init__(cfg, ViTEncoder(cfg, cfg.video), ViTEncoder(cfg, cfg.audio), CrossModalFusion(cfg))

    def fuse(self, video: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        return self.fusion(video, audio)
