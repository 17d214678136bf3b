"""MAE-DFER (Sun et al., 2023) and SVFAP (Sun et al., 2023) as published: video alone, executed op by op."""

from collections import OrderedDict

from einops import rearrange
from torch import Tensor, nn

from avfmae.config import ModelConfig
from avfmae.models.tpsbt import BOTTLENECK, STRIDE
from avfmae_benchmarks.peers.parts import Decoder, PatchEmbed, ViTBlock, layer_norm, pick
from avfmae_benchmarks.peers.released import Encoder


class Bottleneck(nn.Module):
    """Each time step's tokens in a few, weighed by a softmax over the step: (B, T, P, C) -> (B, T·K, C)."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = layer_norm(width)
        self.mlp = nn.Sequential(
            OrderedDict(fc1=nn.Linear(width, width // 4), act=nn.GELU(), fc2=nn.Linear(width // 4, BOTTLENECK))
        )

    def forward(self, x: Tensor) -> Tensor:
        weights = self.mlp(self.norm(x)).softmax(dim=2)
        return (weights.transpose(2, 3) @ x).flatten(1, 2)


class Pyramid(nn.Module):
    """TPSBT. With ``cfg.unmasked_context`` the stages end by reading every token of the clip, as the released code does."""

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.stages, self.steps, self.leaks = cfg.stages, cfg.video.grid[0], cfg.unmasked_context
        self.embed = PatchEmbed(cfg.video, cfg.width)
        self.blocks = nn.ModuleList(ViTBlock(cfg.width, cfg.heads, cross=i >= cfg.stages[0]) for i in range(cfg.depth))
        later = len(cfg.stages) - 1
        self.temporal = nn.ModuleList(nn.Conv1d(cfg.width, cfg.width, STRIDE, STRIDE) for _ in range(later))
        self.spatial = nn.ModuleList(Bottleneck(cfg.width) for _ in range(later))
        self.norm = layer_norm(cfg.width)

    def encode_visible(self, clip: Tensor, masked: Tensor) -> tuple[Tensor, list[Tensor]]:
        everything, blocks = self.embed(clip), iter(self.blocks)
        x = pick(everything, ~masked, None)
        for _ in range(self.stages[0]):
            x = next(blocks)(x)
        total, steps = x, self.steps
        for depth, temporal, spatial in zip(self.stages[1:], self.temporal, self.spatial, strict=True):
            places = x.shape[1] // steps
            x = temporal(rearrange(x, "b (t p) c -> (b p) c t", t=steps))
            steps //= STRIDE
            x = rearrange(x, "(b p) c t -> b (t p) c", p=places)
            narrow = spatial(x.unflatten(1, (steps, places)))
            for _ in range(depth - 1):
                narrow = next(blocks)(narrow, x)
            x = next(blocks)(x, everything if self.leaks else narrow)
            runs = x.unflatten(1, (steps * STRIDE, -1))  # as released: cut where time has not yet been halved
            total = total + runs.repeat_interleave(self.steps // steps, dim=1).flatten(1, 2)
        return self.norm(total), []


class PublishedVideo(nn.Module):
    """Pre-training of a video-only member.

    Args:
        cfg: with encoder ``"lgi"``, MAE-DFER, or ``"tpsbt"``, SVFAP.
    """

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.cfg = cfg
        self.video_encoder = Pyramid(cfg) if cfg.encoder == "tpsbt" else Encoder(cfg, cfg.video)
        self.video_decoder = Decoder(cfg, cfg.video)

    def forward(self, video: Tensor, masked: Tensor) -> Tensor:
        """Normalised clips (B, 3, T, H, W), mask (B, tokens), True = masked -> predictions of the masked tokens."""
        tokens, skips = self.video_encoder.encode_visible(video, masked)
        return self.video_decoder(tokens, skips, masked, masked)
