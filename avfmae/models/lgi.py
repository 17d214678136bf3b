"""LGI-Former with a fourth stage, the modality encoder (AVF-MAE++ §3.3, eqs. 4–7; stages I–III from MAE-DFER).

Shapes: B batch, R regions, S = 1 + tokens a region (slot 0 is the region token), C width.
Letters: t local tokens (B, R·(S-1), C), m region tokens (B, R, C).
"""

import torch
from einops import rearrange
from torch import Tensor, nn

from avfmae.config import ModalityConfig, ModelConfig
from avfmae.masking import region_of
from avfmae.models.attention import MLP, CrossAttention, SelfAttention, drop_path, layer_norm
from avfmae.models.embed import PatchEmbed


class LGIBlock(nn.Module):
    """Four attentions and a feed-forward, all pre-norm and residual, each attention with its own weights."""

    def __init__(self, width: int, heads: int, drop: float = 0.0):
        super().__init__()
        self.drop = drop
        self.local_norm, self.local_attn = layer_norm(width), SelfAttention(width, heads)  # I
        self.region_norm, self.region_attn = layer_norm(width), SelfAttention(width, heads)  # II
        self.spread_norm, self.spread_context_norm = layer_norm(width), layer_norm(width)  # III
        self.spread_attn = CrossAttention(width, heads)
        self.collect_norm, self.collect_context_norm = layer_norm(width), layer_norm(width)  # IV
        self.collect_attn = CrossAttention(width, heads)
        self.mlp_norm, self.mlp = layer_norm(width), MLP(width)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, R, S, C) -> the same."""
        regions = x.shape[1]
        m, t = self.locals_and_regions(x)
        m = self.collect(m, t)
        x = torch.cat([m[:, :, None], rearrange(t, "b (r s) c -> b r s c", r=regions)], dim=2)
        return self.feed_forward(x)

    def locals_only(self, x: Tensor) -> Tensor:
        """Local tokens (B, R·(S-1), C) of a last block whose region tokens nobody reads: no stage IV, no region FFN."""
        return self.feed_forward(self.locals_and_regions(x)[1])

    def regions_only(self, x: Tensor) -> Tensor:
        """Region tokens (B, R, C) of a last block whose local tokens nobody reads: no local FFN."""
        return self.feed_forward(self.collect(*self.locals_and_regions(x)))

    def locals_and_regions(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Stages I to III: x (B, R, S, C) -> m (B, R, C), t (B, R·(S-1), C)."""
        regions = x.shape[1]
        attended = self.local_attn(rearrange(self.local_norm(x), "b r s c -> (b r) s c"))
        x = x + self.dropped(rearrange(attended, "(b r) s c -> b r s c", r=regions))
        m, t = x[:, :, 0], rearrange(x[:, :, 1:], "b r s c -> b (r s) c")
        m = m + self.dropped(self.region_attn(self.region_norm(m)))
        t = t + self.dropped(self.spread_attn(self.spread_norm(t), self.spread_context_norm(m)))
        return m, t

    def collect(self, m: Tensor, t: Tensor) -> Tensor:
        """Stage IV: the region tokens read all updated local tokens."""
        return m + self.dropped(self.collect_attn(self.collect_norm(m), self.collect_context_norm(t)))

    def feed_forward(self, x: Tensor) -> Tensor:
        """One norm and one MLP, shared by local and region tokens."""
        return x + self.dropped(self.mlp(self.mlp_norm(x)))

    def dropped(self, branch: Tensor) -> Tensor:
        return drop_path(branch, self.drop, self.training)


class LGIEncoder(nn.Module):
    """Patch embedding and L blocks over one modality."""

    def __init__(self, cfg: ModelConfig, m: ModalityConfig):
        super().__init__()
        self.skip_blocks, self.region_mode, self.regions = cfg.skip_blocks, cfg.region_mode, m.regions
        self.steps, self.groups = m.region[0], m.grid[0] // m.region[0]  # time steps a region, regions along time
        self.is_video = len(m.size) == 3
        self.embed = PatchEmbed(m, cfg.width)
        self.region_tokens = nn.Parameter(torch.zeros(m.regions, cfg.width))
        rates = torch.linspace(0, cfg.drop_path, cfg.depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(LGIBlock(cfg.width, cfg.heads, rate) for rate in rates)
        self.norm = layer_norm(cfg.width)
        self.register_buffer("region_of", torch.tensor(region_of(m)), persistent=False)

    def region_major(self, visible: Tensor) -> Tensor:
        """Visible tokens (B, N), ascending, reordered so that each region's tokens follow one another.

        Exact regions are places. Released ones are runs: of all visible tokens for audio; for video, the time steps of
        a region are grouped, and inside each the visible tokens are cut into as many runs as there are spatial regions.
        """
        if self.region_mode == "exact":
            region = self.region_of[visible]
            if visible.device.type == "cpu" and not torch.compiler.is_compiling():
                self._check_balanced(region)
            return visible.gather(1, region.argsort(dim=1, stable=True))
        if not self.is_video:
            return visible
        runs = self.regions // self.groups
        return rearrange(
            visible, "b (group step run k) -> b (group run step k)", group=self.groups, step=self.steps, run=runs
        )

    def _check_balanced(self, region: Tensor) -> None:
        counts = torch.nn.functional.one_hot(region, self.regions).sum(1)
        if (counts != region.shape[1] // self.regions).any():
            raise ValueError(
                f"masks: regions hold {counts.min()} to {counts.max()} visible tokens; region_mode='exact' needs "
                f"{region.shape[1] // self.regions} in each. Masks of the released kind go with region_mode='released'."
            )

    def tokens(self, clip: Tensor, index: Tensor) -> Tensor:
        """Embedded tokens with their region tokens in front: index (B, N) region-major -> (B, R, S, C)."""
        t = rearrange(self.embed(clip, index), "b (r s) c -> b r s c", r=self.regions)
        return torch.cat([self.region_tokens.to(t.dtype).expand(len(t), -1, -1)[:, :, None], t], dim=2)

    def encode_visible(self, clip: Tensor, visible: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        """Pre-training: the visible tokens only.

        Returns:
            LN(local tokens) of the last block (B, N, C); the same of the skip blocks, shallowest first; and the token
            index (B, N) that belongs to them: region-major, as the tokens are.
        """
        index = self.region_major(visible)
        x, skips = self.tokens(clip, index), []
        for i, block in enumerate(self.blocks[:-1]):
            x = block(x)
            if i in self.skip_blocks:
                skips.append(self.norm(rearrange(x[:, :, 1:], "b r s c -> b (r s) c")))
        out = self.norm(self.blocks[-1].locals_only(x))
        if len(self.blocks) - 1 in self.skip_blocks:
            skips.append(out)
        return out, skips, index

    def encode_regions(self, clip: Tensor) -> Tensor:
        """Fine-tuning: all tokens. Returns LN(region tokens) of every block: (B, R, L, C)."""
        index = self.region_of.argsort(stable=True).expand(len(clip), -1)
        x, regions = self.tokens(clip, index), []
        for block in self.blocks[:-1]:
            x = block(x)
            regions.append(x[:, :, 0])
        regions.append(self.blocks[-1].regions_only(x))
        return self.norm(torch.stack(regions, dim=2))
