"""HiCMAE (Sun et al., 2024) as published; with ``sdpa`` what a good user makes of it before compiling."""

from torch import Tensor, nn

from avfmae.config import ModalityConfig, ModelConfig
from avfmae_benchmarks.peers.parts import Decoder, PatchEmbed, ViTBlock, layer_norm, pick


class Encoder(nn.Module):
    def __init__(self, cfg: ModelConfig, m: ModalityConfig, sdpa: bool):
        super().__init__()
        self.skip_blocks, self.count = cfg.skip_blocks, m.visible if sdpa else None
        self.embed = PatchEmbed(m, cfg.width)
        self.blocks = nn.ModuleList(ViTBlock(cfg.width, cfg.heads, sdpa=sdpa) for _ in range(cfg.depth))
        self.norm = layer_norm(cfg.width)

    def forward(self, clip: Tensor, masked: Tensor) -> tuple[Tensor, list[Tensor]]:
        x = self.embed(clip)
        x, normalised = pick(x, ~masked, self.count), []
        for block in self.blocks:
            x = block(x)
            normalised.append(self.norm(x))  # of every block, whoever reads it
        return self.norm(x), [normalised[i] for i in self.skip_blocks]


class Fusion(nn.Module):
    """Both modalities' blocks read the other's input."""

    def __init__(self, cfg: ModelConfig, sdpa: bool):
        super().__init__()
        self.video_blocks, self.audio_blocks = (
            nn.ModuleList(ViTBlock(cfg.width, cfg.heads, cross=True, sdpa=sdpa) for _ in range(cfg.fusion_depth))
            for _ in range(2)
        )
        self.video_norm, self.audio_norm = layer_norm(cfg.width), layer_norm(cfg.width)

    def forward(self, video: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        for video_block, audio_block in zip(self.video_blocks, self.audio_blocks, strict=True):
            video, audio = video_block(video, audio), audio_block(audio, video)
        return self.video_norm(video), self.audio_norm(audio)


class HiCMAE(nn.Module):
    """Args: cfg with encoder ``"vit"`` and fusion ``"cross"``; sdpa: torch's attention, and token counts known to a compiler."""

    def __init__(self, cfg: ModelConfig, sdpa: bool = False):
        super().__init__()
        self.cfg = cfg
        self.video_encoder, self.audio_encoder = Encoder(cfg, cfg.video, sdpa), Encoder(cfg, cfg.audio, sdpa)
        self.fusion = Fusion(cfg, sdpa)
        self.video_decoder, self.audio_decoder = Decoder(cfg, cfg.video, sdpa), Decoder(cfg, cfg.audio, sdpa)

    def forward(self, video: Tensor, audio: Tensor, masked_video: Tensor, masked_audio: Tensor):
        """Normalised clips (B, 3, T, H, W), spectrograms (B, 1, frames, mels), masks (B, tokens), True = masked.

        Returns predictions of the masked tokens, (B, 720, 1536) and (B, 102, 256), and each modality's skip features.
        """
        v, video_skips = self.video_encoder(video, masked_video)
        a, audio_skips = self.audio_encoder(audio, masked_audio)
        v, a = self.fusion(v, a)
        return (
            self.video_decoder(v, video_skips, masked_video, masked_video),
            self.audio_decoder(a, audio_skips, masked_audio, masked_audio),
            video_skips,
            audio_skips,
        )
