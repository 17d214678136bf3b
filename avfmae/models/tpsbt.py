"""TPSBT, the encoder of SVFAP (Sun et al., 2023): a temporal pyramid with spatial bottlenecks, for video.

The first stage is a plain ViT. Each later one halves the time steps, gathers every step's tokens in a few bottleneck tokens, lets
these read the step's tokens block by block, and in its last block spreads them over the tokens again.

Shapes: B batch, T time steps, P tokens a step (all positions, or a tube's visible ones), K bottleneck tokens a step, C width.
"""

import torch
from einops import rearrange
from torch import Tensor, nn

import avfmae_kernels as K
from avfmae.config import ModalityConfig, ModelConfig
from avfmae.models.attention import MLP, add_norm, layer_norm
from avfmae.models.embed import PatchEmbed
from avfmae.models.interfaces import Encoder, Features
from avfmae.models.recompute import run
from avfmae.models.vit import ViTBlock
from avfmae_kernels.device import kind

BOTTLENECK = 8  # tokens a time step
STRIDE = 2  # time steps that become one


class TemporalDownsampling(nn.Conv1d):
    """A convolution over time, kernel = stride, at each position: as one matrix product."""

    def __init__(self, width: int):
        super().__init__(width, width, STRIDE, STRIDE)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, P, C) -> (B, T/2, P, C)."""
        x = rearrange(x, "b (t s) p c -> b t p (s c)", s=STRIDE)
        return K.linear(x, rearrange(self.weight, "o c s -> o (s c)"), self.bias)


class SpatialBottleneck(nn.Module):
    """Each bottleneck token is a mean over its time step's tokens, weighed by a softmax."""

    def __init__(self, width: int):
        super().__init__()
        self.norm, self.mlp = layer_norm(width), MLP(width, hidden=width // 4, out=BOTTLENECK)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, P, C) -> (B, T·K, C)."""
        _, logits = self.mlp(x, None, self.norm)
        return (logits.softmax(dim=2).mT @ x).flatten(1, 2)


class TPSBTEncoder(Encoder):
    """``cfg.stages``: blocks of each stage."""

    RELEASED_NAMES = (
        (r"^temporal\.", "temporal_downsamples."),
        (r"^spatial\.", "spatial_downsamples."),
        *PatchEmbed.RELEASED_NAMES,
        *ViTBlock.RELEASED_NAMES,
    )

    def __init__(self, cfg: ModelConfig, m: ModalityConfig):
        super().__init__()
        if cfg.modalities != ("video",) or cfg.fusion != "none":
            what = "modalities" if cfg.modalities != ("video",) else "fusion"
            raise ValueError(
                f"encoder: got 'tpsbt' with {what}={getattr(cfg, what)!r}, expected modalities=('video',), fusion='none'"
            )
        if cfg.skip_blocks:
            raise ValueError(f"skip_blocks: got {cfg.skip_blocks}, expected () with encoder='tpsbt'")
        later = len(cfg.stages) - 1
        if later < 0 or m.grid[0] % STRIDE**later:
            raise ValueError(
                f"stages: got {cfg.stages} with encoder='tpsbt' and {m.grid[0]} time steps, which each but the first halves"
            )
        # the runs of a time step's tokens that are repeated together: the released code cuts where a step has not yet been halved
        self.runs = STRIDE if cfg.token_order == "released" else 1
        if m.visible // m.grid[0] % self.runs:
            raise ValueError(
                f"token_order: got 'released' with encoder='tpsbt' and {m.visible // m.grid[0]} visible tokens a time step, "
                f"expected an even number of them, or 'raster'"
            )
        self.stages, self.recompute, self.unmasked_context = cfg.stages, cfg.recompute, cfg.unmasked_context
        self.embed = PatchEmbed(m, cfg.width, cfg.residual)
        rates = torch.linspace(0, cfg.drop_path, cfg.depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(
            ViTBlock(cfg.width, cfg.heads, cross=i >= cfg.stages[0], drop=rate) for i, rate in enumerate(rates)
        )
        self.temporal = nn.ModuleList(TemporalDownsampling(cfg.width) for _ in range(later))
        self.spatial = nn.ModuleList(SpatialBottleneck(cfg.width) for _ in range(later))
        self.norm = layer_norm(cfg.width)

    def pyramid(self, x: Tensor, everything: Tensor | None = None, levels: list[Tensor] | None = None) -> list[Tensor]:
        """Tokens (B, T·P, C) -> each stage's output (B, T/2^k, P, C). ``everything``: what the released defect reads. ``levels``
        gets the mean token of every block, (B, C)."""
        blocks, outputs = iter(self.blocks), []

        def step(x: Tensor, branch: Tensor | None, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
            x, added = run(next(blocks), x, branch, context, recompute=self.recompute)
            if levels is not None:
                levels.append(add_norm(x, added, self.norm)[1].mean(1))
            return x, added

        x, branch = step(x, None)
        for _ in range(self.stages[0] - 1):
            x, branch = step(x, branch)
        outputs.append((x + branch).unflatten(1, (self.embed.m.grid[0], -1)))
        for depth, temporal, spatial in zip(self.stages[1:], self.temporal, self.spatial, strict=True):
            x = temporal(outputs[-1])
            tokens, (narrow, branch) = x.flatten(1, 2), (spatial(x), None)
            for _ in range(depth - 1):
                narrow, branch = step(narrow, branch, tokens)
            narrow = narrow if branch is None else narrow + branch
            tokens, branch = step(tokens, None, narrow if everything is None else everything)
            outputs.append((tokens + branch).unflatten(1, (x.shape[1], -1)))
        return outputs

    def all_tokens(self, clip: Tensor, boxes: Tensor | None = None) -> Tensor:
        return self.embed(clip, torch.arange(self.embed.m.tokens, device=clip.device).expand(len(clip), -1), boxes)

    def encode_visible(self, clip: Tensor, visible: Tensor, boxes: Tensor | None = None) -> tuple[Tensor, list[Tensor], Tensor]:
        """The stages' outputs are added up, each repeated in time to the first one's length."""
        steps = self.embed.m.grid[0]
        if kind(visible.device) == "cpu" and not torch.compiler.is_compiling():
            places = visible.unflatten(1, (steps, -1)) % (self.embed.m.tokens // steps)
            if (places != places[:, :1]).any():
                raise ValueError("masks: video shows other places at other times, expected a tube with encoder='tpsbt'")
        outputs = self.pyramid(self.embed(clip, visible, boxes), self.all_tokens(clip, boxes) if self.unmasked_context else None)
        total = outputs[0].flatten(1, 2)
        for output in outputs[1:]:
            coarse = self.runs * output.shape[1]  # (B, T/2^k, P, C) -> (B, runs·T/2^k, P/runs, C)
            repeats = steps // output.shape[1]
            output = output.flatten(1, 2).unflatten(1, (coarse, -1))
            total = total + output.repeat_interleave(repeats, dim=1, output_size=repeats * coarse).flatten(1, 2)
        return add_norm(total, None, self.norm)[1], [], visible

    def encode_all(self, clip: Tensor) -> Features:
        """The last stage's output. Levels are of one token, the mean of a block's, which may be bottleneck tokens."""
        levels = [] if self.needs_levels else None
        last = self.pyramid(self.all_tokens(clip), levels=levels)[-1].flatten(1, 2)
        return Features(add_norm(last, None, self.norm)[1], torch.stack(levels, dim=1)[:, None] if levels else None)
