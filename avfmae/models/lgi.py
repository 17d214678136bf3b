"""LGI-Former, the modality encoder, with a fourth stage (AVF-MAE++ §3.3, eqs. 4–7) and without (MAE-DFER).

Shapes: B batch, R regions, S = 1 + tokens a region (slot 0 is the region token), C width.
Letters: t local tokens (B, R·(S-1), C), m region tokens (B, R, C).
"""

import torch
from einops import rearrange
from torch import Tensor, nn

import avfmae_kernels as K
from avfmae.config import ModalityConfig, ModelConfig
from avfmae.masking import region_of
from avfmae.models.attention import MLP, CrossAttention, DropsBranches, SelfAttention, add_norm, layer_norm
from avfmae.models.embed import PatchEmbed
from avfmae.models.interfaces import Encoder, Features
from avfmae.models.recompute import run
from avfmae_kernels.device import kind


class LGIBlock(DropsBranches):
    """Three attentions, or four, and a feed-forward, all pre-norm and residual, each attention with its own weights."""

    RELEASED_NAMES = (
        (r"\blocal_norm\.", "first_attn_norm0."),
        (r"\blocal_attn\.qkv\.weight$", "first_attn.q.weight", "first_attn.kv.weight"),
        (r"\blocal_attn\.", "first_attn."),
        (r"\bregion_norm\.", "second_attn_norm0."),
        (r"\bregion_attn\.qkv\.weight$", "second_attn.q.weight", "second_attn.kv.weight"),
        (r"\bregion_attn\.", "second_attn."),
        (r"\bspread_norm\.", "third_attn_norm0."),
        (r"\bspread_context_norm\.", "third_attn_norm1."),
        (r"\bspread_attn\.", "third_attn."),
        (r"\bcollect_norm\.", "fourth_attn_norm0."),
        (r"\bcollect_context_norm\.", "fourth_attn_norm1."),
        (r"\bcollect_attn\.", "fourth_attn."),
        (r"\bmlp_norm\.", "norm2."),
    )

    def __init__(self, width: int, heads: int, drop: float = 0.0, collects: bool = True):
        super().__init__(drop)
        self.collects = collects  # whether there is stage IV
        self.local_norm, self.local_attn = layer_norm(width), SelfAttention(width, heads)  # I
        self.region_norm, self.region_attn = layer_norm(width), SelfAttention(width, heads)  # II
        self.spread_norm, self.spread_context_norm = layer_norm(width), layer_norm(width)  # III
        self.spread_attn = CrossAttention(width, heads)
        if collects:
            self.collect_norm, self.collect_context_norm = layer_norm(width), layer_norm(width)  # IV
            self.collect_attn = CrossAttention(width, heads)
        self.mlp_norm, self.mlp = layer_norm(width), MLP(width)

    def forward(self, x: Tensor, branch: Tensor | None) -> tuple[Tensor, Tensor]:
        """x, branch (B, R, S, C) -> the same; the block's input is their sum, and so is its output."""
        m, m_branch, t = self.attentions(x, branch)
        x, normalised = K.join_add_layer_norm(
            m, m_branch, t, self.mlp_norm.weight, self.mlp_norm.bias, self.mlp_norm.eps, m_branch.dtype
        )
        return x, self.dropped(self.mlp.of_normalised(normalised))

    def locals_only(self, x: Tensor, branch: Tensor | None) -> tuple[Tensor, Tensor]:
        """Local tokens and their branch (B, R·(S-1), C) of a last block whose region tokens nobody reads: no stage IV."""
        t, branch, _ = self.spread(*self.local_and_inter_region(x, branch))
        t, branch = self.mlp(t, branch, self.mlp_norm)
        return t, self.dropped(branch)

    def regions_only(self, x: Tensor, branch: Tensor | None) -> tuple[Tensor, Tensor]:
        """Region tokens and their branch (B, R, C) of a last block whose local tokens nobody reads: no local FFN, and stage III
        for stage IV alone."""
        if self.collects:
            m, m_branch, _ = self.attentions(x, branch)
        else:
            m, m_branch, _, _ = self.local_and_inter_region(x, branch)
        m, m_branch = self.mlp(m, m_branch, self.mlp_norm)
        return m, self.dropped(m_branch)

    def local_and_inter_region(self, x: Tensor, branch: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Stages I and II: x (B, R, S, C) -> m (B, R, C) and its branch; t (B, R·(S-1), C) and its norm."""
        x, branch = self.local_attn(x, branch, self.local_norm)  # I
        m, m_norm, t, t_norm = K.split_add_layer_norm(
            x, self.dropped(branch), (self.region_norm.weight, self.region_norm.bias),
            (self.spread_norm.weight, self.spread_norm.bias), self.region_norm.eps, branch.dtype,
        )  # fmt: skip
        qkv = K.linear(m_norm, self.region_attn.qkv.weight, self.region_attn.bias)
        return m, self.dropped(self.region_attn.attend(qkv)), t, t_norm  # II

    def spread(self, m: Tensor, m_branch: Tensor, t: Tensor, t_norm: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Stage III: t (B, R·(S-1), C) and its branch; and m (B, R, C), its branch added."""
        total, kv = self.spread_attn.keys_and_values(m, m_branch, self.spread_context_norm)
        q = K.linear(t_norm, self.spread_attn.q.weight, self.spread_attn.q_bias)
        return t, self.dropped(self.spread_attn.attend(q, kv)), total

    def attentions(self, x: Tensor, branch: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """All stages: x (B, R, S, C) -> m (B, R, C) and its branch; t (B, R·(S-1), C)."""
        m, m_branch, t, t_norm = self.local_and_inter_region(x, branch)
        t, branch, total = self.spread(m, m_branch, t, t_norm)
        if not self.collects:
            return m, m_branch, t + branch
        t, kv = self.collect_attn.keys_and_values(t, branch, self.collect_context_norm)
        total, q = self.collect_attn.queries(total, None, self.collect_norm)
        return total, self.dropped(self.collect_attn.attend(q, kv)), t  # IV


class LGIEncoder(Encoder):
    """Patch embedding and L blocks over one modality; :class:`LGI4Encoder` has stage IV in them."""

    collects = False

    RELEASED_NAMES = ((r"^region_tokens$", "lg_region_tokens"), *PatchEmbed.RELEASED_NAMES, *LGIBlock.RELEASED_NAMES)

    def __init__(self, cfg: ModelConfig, m: ModalityConfig):
        super().__init__()
        if cfg.region_mode == "exact" and not cfg.balanced_masks:
            raise ValueError(f"balanced_masks: got False, expected True with encoder={cfg.encoder!r} and region_mode='exact'")
        self.is_video = len(m.size) == 3
        parts = m.regions * (m.region[0] if self.is_video else 1)  # runs of visible tokens, of video in each time step
        if m.visible % parts:
            name = "video" if self.is_video else "audio"
            raise ValueError(
                f"{name}.visible: got {m.visible}, expected a multiple of {parts} with encoder={cfg.encoder!r} and "
                f"{name}.region={m.region}"
            )
        self.skip_blocks, self.region_mode, self.regions = cfg.skip_blocks, cfg.region_mode, m.regions
        self.recompute = cfg.recompute
        self.steps, self.groups = m.region[0], m.grid[0] // m.region[0]  # time steps a region, regions along time
        self.embed = PatchEmbed(m, cfg.width, cfg.residual)
        self.region_tokens = nn.Parameter(torch.zeros(m.regions, cfg.width))
        rates = torch.linspace(0, cfg.drop_path, cfg.depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(LGIBlock(cfg.width, cfg.heads, rate, self.collects) for rate in rates)
        self.norm = layer_norm(cfg.width)
        self.register_buffer("region_of", torch.tensor(region_of(m)), persistent=False)

    def region_major(self, visible: Tensor) -> Tensor:
        """Visible tokens (B, N), ascending, reordered so that each region's tokens follow one another.

        Exact regions are places. Released ones are runs: of all visible tokens for audio; for video, the time steps of
        a region are grouped, and inside each the visible tokens are cut into as many runs as there are spatial regions.
        """
        if self.region_mode == "exact":
            region = self.region_of[visible]
            if kind(visible.device) == "cpu" and not torch.compiler.is_compiling():
                self._check_balanced(region)
            return visible.gather(1, region.argsort(dim=1, stable=True))
        if not self.is_video:
            return visible
        runs = self.regions // self.groups
        return rearrange(visible, "b (group step run k) -> b (group run step k)", group=self.groups, step=self.steps, run=runs)

    def _check_balanced(self, region: Tensor) -> None:
        counts = torch.nn.functional.one_hot(region, self.regions).sum(1)
        if (counts != region.shape[1] // self.regions).any():
            raise ValueError(
                f"masks: regions hold {counts.min()} to {counts.max()} visible tokens; region_mode='exact' needs "
                f"{region.shape[1] // self.regions} in each. Masks of the released kind go with region_mode='released'."
            )

    def tokens(self, clip: Tensor, index: Tensor, boxes: Tensor | None = None) -> Tensor:
        """Embedded tokens with their region tokens in front: index (B, N) region-major -> (B, R, S, C)."""
        t = rearrange(self.embed(clip, index, boxes), "b (r s) c -> b r s c", r=self.regions)
        return torch.cat([self.region_tokens.to(t.dtype).expand(len(t), -1, -1)[:, :, None], t], dim=2)

    def encode_visible(self, clip: Tensor, visible: Tensor, boxes: Tensor | None = None) -> tuple[Tensor, list[Tensor], Tensor]:
        """The tokens' index that is returned is region-major, as the tokens are."""
        index = self.region_major(visible)
        x, branch, skips = self.tokens(clip, index, boxes), None, []
        for i, block in enumerate(self.blocks[:-1]):
            x, branch = run(block, x, branch, recompute=self.recompute)
            if i in self.skip_blocks:
                x, branch = x + branch, None
                skips.append(add_norm(x[:, :, 1:], None, self.norm)[1].flatten(1, 2))
        _, out = add_norm(*self.blocks[-1].locals_only(x, branch), self.norm)
        if len(self.blocks) - 1 in self.skip_blocks:
            skips.append(out)
        return out, skips, index

    def encode_all(self, clip: Tensor) -> Features:
        """Region tokens alone are given on, of every block: levels (B, R, L, C)."""
        index = self.region_of.argsort(stable=True).expand(len(clip), -1)
        x, branch, regions = self.tokens(clip, index), None, []
        for block in self.blocks[:-1]:
            x, branch = run(block, x, branch, recompute=self.recompute)
            if self.needs_levels:
                regions.append(x[:, :, 0] + branch[:, :, 0])
        m, branch = self.blocks[-1].regions_only(x, branch)
        if not self.needs_levels:
            return Features(add_norm(m, branch, self.norm)[1])
        levels = add_norm(torch.stack([*regions, m + branch], dim=2), None, self.norm)[1]
        return Features(levels[:, :, -1], levels)


class LGI4Encoder(LGIEncoder):
    collects = True
