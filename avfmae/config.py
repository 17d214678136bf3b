"""What a model is made of: typed, frozen, and given by name for the published sizes."""

import math
from dataclasses import dataclass, field, fields, replace
from typing import Literal, get_args, get_origin


@dataclass(frozen=True)
class ModalityConfig:
    """One modality's input, its token grid, and what the masks leave of it.

    Sizes are in pixels (frames, rows, columns) for video and in (frames, mel bins) for audio.
    """

    size: tuple[int, ...]
    patch: tuple[int, ...]
    region: tuple[int, ...]  # in tokens
    visible: int  # tokens that the encoder sees in pre-training
    decoded: int  # tokens that the decoder predicts

    @property
    def grid(self) -> tuple[int, ...]:
        """Tokens along each axis."""
        return tuple(s // p for s, p in zip(self.size, self.patch, strict=True))

    @property
    def tokens(self) -> int:
        return math.prod(self.grid)

    @property
    def regions(self) -> int:
        return math.prod(g // r for g, r in zip(self.grid, self.region, strict=True))


MODALITIES = ("video", "audio")
VIDEO = ModalityConfig((16, 160, 160), (2, 16, 16), (2, 5, 10), visible=80, decoded=400)
AUDIO = ModalityConfig((256, 128), (16, 16), (4, 4), visible=24, decoded=64)


@dataclass(frozen=True)
class ModelConfig:
    """A model of the family. ``ModelConfig.preset("base")`` gives the published sizes.

    Attributes:
        modalities: what it sees: ``("video", "audio")``, or one of them.
        encoder: of each modality, by its name in :mod:`avfmae.models.registry`: ``"lgi4"`` (LGI-Former), ``"lgi"`` (without
            its fourth stage), ``"vit"``, ``"tpsbt"`` (SVFAP's pyramid, video only).
        fusion: by its name there: ``"iavcl"``; its two parts one at a time, ``"dier"`` and ``"hafe"``; ``"cross"`` (HiCMAE's
            cross-attention); ``"none"``. A model of one modality pre-trains with ``"none"`` alone.
        width, heads, depth: of each encoder. stages: blocks of each stage of a pyramid; they add up to ``depth``.
        skip_blocks: encoder blocks (0-based) whose output the decoder reads and HCMCL contrasts, shallowest first.
        decoder_depth: blocks of a decoder; the last ones read a skip feature each, the deepest first.
        fusion_depth: units, or layers, of the fusion.
        balanced_masks: the encoder sees equally many tokens of every exact region, which LGI-Former needs.
        decoder_masks: the decoder predicts the tokens that a mask of its own picks; else all that the encoder does not see.
        frame_difference: of a tubelet, the decoder predicts the first frame and what changes after it; else all its frames.
        region_mode: ``"exact"``: pre-training regions are the places that fine-tuning regions are, and masks are drawn
            balanced over them; ``"released"``: they are runs of visible tokens, as in the released code.
        token_order: ``"raster"``: every token meets its own position in the decoder; ``"released"``: video tokens
            stay region-major while positions are in raster order, the defect that the released weights were trained with. Of a
            pyramid, coarse stages are added to other places' tokens in pre-training, as SVFAP's were: its preset's.
        unmasked_context: the defect of SVFAP's released pre-training: a pyramid's stages end by reading all tokens of the clip,
            masked ones included, where the paper has the bottleneck tokens.
        drop_path: stochastic depth, the rate of the last block; it grows linearly over the blocks.
        temperature, contrastive_weight: τ and λ of HCMCL.
        gather_negatives: contrast with the clips of all processes rather than of one.
        negatives: contrast each clip with this many others, whatever the batch; None: with all.
        residual: what tokens are between blocks: ``"compute"``, the dtype of matrix products, as under the published autocast, or
            ``"float32"``: with products in bfloat16, residual additions then move 1.5 times the bytes.
        attention: ``"sdpa"`` or ``"flash"`` (the flash-attn package, half precision, on a GPU) for the decoder's long sequences.
        recompute: what encoders and decoders recompute in the backward pass to save memory: nothing (``"none"``), all but
            matrix products and long attention (``"selective"``), or all of a block (``"full"``).
    """

    modalities: tuple[Literal["video", "audio"], ...] = ("video", "audio")
    encoder: str = "lgi4"
    fusion: str = "iavcl"
    width: int = 512
    heads: int = 8
    depth: int = 10
    stages: tuple[int, ...] = ()
    skip_blocks: tuple[int, ...] = (3, 6, 9)
    decoder_width: int = 384
    decoder_heads: int = 6
    decoder_depth: int = 4
    fusion_depth: int = 2
    video: ModalityConfig = field(default_factory=lambda: VIDEO)
    audio: ModalityConfig = field(default_factory=lambda: AUDIO)
    balanced_masks: bool = True
    decoder_masks: bool = True
    frame_difference: bool = True
    region_mode: Literal["exact", "released"] = "exact"
    token_order: Literal["raster", "released"] = "raster"
    unmasked_context: bool = False
    drop_path: float = 0.0
    temperature: float = 0.07
    contrastive_weight: float = 0.0025
    gather_negatives: bool = True
    negatives: int | None = None
    residual: Literal["compute", "float32"] = "compute"
    attention: Literal["sdpa", "flash"] = "sdpa"
    recompute: Literal["none", "selective", "full"] = "none"

    def __post_init__(self):
        for f in fields(self):
            value, allowed = getattr(self, f.name), get_args(f.type)
            if f.type is int and value < 1:
                raise ValueError(f"{f.name}: got {value}, expected at least 1")
            if get_origin(f.type) is Literal and value not in allowed:
                raise ValueError(f"{f.name}: got {value!r}, expected one of {allowed}")
        if not self.modalities or set(self.modalities) - set(MODALITIES):
            raise ValueError(f"modalities: got {self.modalities}, expected one or both of {MODALITIES}")
        object.__setattr__(self, "modalities", tuple(m for m in MODALITIES if m in self.modalities))
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path: got {self.drop_path}, expected a rate from 0 to below 1")
        for name, width, heads in (("heads", self.width, self.heads), ("decoder_heads", self.decoder_width, self.decoder_heads)):
            if width % heads:
                raise ValueError(f"{name}: {heads} does not divide the width {width}")
        if not all(0 <= b < self.depth for b in self.skip_blocks) or list(self.skip_blocks) != sorted(set(self.skip_blocks)):
            raise ValueError(f"skip_blocks: got {self.skip_blocks}, expected ascending block numbers below depth {self.depth}")
        if len(self.skip_blocks) >= self.decoder_depth:
            raise ValueError(f"skip_blocks: got {self.skip_blocks}, expected fewer than decoder_depth {self.decoder_depth}")
        if self.stages and (sum(self.stages) != self.depth or min(self.stages) < 1):
            raise ValueError(f"stages: got {self.stages}, expected numbers of blocks that add up to depth {self.depth}")
        for name in ("stages", "unmasked_context"):
            if getattr(self, name) and self.encoder in ("lgi4", "lgi", "vit"):
                raise ValueError(f"{name}: got {getattr(self, name)} with encoder={self.encoder!r}, which is no pyramid")
        for name in self.modalities:
            m, axes = getattr(self, name), 3 if name == "video" else 2
            if {len(m.size), len(m.patch), len(m.region)} != {axes} or min(*m.size, *m.patch, *m.region) < 1:
                raise ValueError(f"{name}: got {m}, expected {axes} positive numbers for each of size, patch and region")
            if any(s % (p * r) for s, p, r in zip(m.size, m.patch, m.region, strict=True)):
                raise ValueError(f"{name}: patch {m.patch} must divide size {m.size}, and region {m.region} the grid {m.grid}")
            parts = m.regions if self.balanced_masks else 1
            if name == "video":  # a tube: the same places at every time, balanced over the regions of the frame
                spatial = math.prod(m.grid[1:]) // math.prod(m.region[1:]) if self.balanced else 1
                parts = math.lcm(parts, m.grid[0] * spatial)
            if m.visible % parts or not 0 < m.visible < m.tokens:
                why = f"balanced_masks={self.balanced_masks} and {name}.region={m.region}"
                raise ValueError(
                    f"{name}.visible: got {m.visible} of {m.tokens} tokens, expected fewer, a multiple of {parts} with {why}"
                )
            hidden = m.tokens - m.visible
            if not self.decoder_masks and m.decoded != hidden:
                raise ValueError(
                    f"{name}.decoded: got {m.decoded}, expected the {hidden} tokens that are not visible with decoder_masks=False"
                )
            half = self.decoder_masks and name == "video"  # which running cells show
            if not 0 < m.decoded <= m.tokens or (half and m.decoded * 2 != m.tokens):
                expected = "half" if half else "1 or more"
                given = f"with decoder_masks={self.decoder_masks}"
                raise ValueError(f"{name}.decoded: got {m.decoded} of {m.tokens} tokens, expected {expected} {given}")

    @property
    def balanced(self) -> bool:
        """Whether masks are drawn balanced over the regions: where regions are runs of tokens, no mask can be."""
        return self.balanced_masks and self.region_mode == "exact"

    @classmethod
    def preset(cls, name: str) -> "ModelConfig":
        """A named configuration, one of PRESETS."""
        if name not in PRESETS:
            raise ValueError(f"preset: got {name!r}, expected one of {', '.join(PRESETS)}")
        return PRESETS[name]

    def replace(self, **changes) -> "ModelConfig":
        """A copy with some fields changed."""
        known = self.__dataclass_fields__
        if unknown := set(changes) - set(known):
            raise ValueError(f"ModelConfig has no field {', '.join(sorted(unknown))}; it has {', '.join(known)}")
        return replace(self, **changes)

    def at_size_of(self, other: "ModelConfig") -> "ModelConfig":
        """This member of the family at the sizes of another one, whose temperature and λ it takes too."""
        names = (
            "width",
            "heads",
            "depth",
            "decoder_width",
            "decoder_heads",
            "decoder_depth",
            "temperature",
            "contrastive_weight",
        )
        modalities = {name: getattr(other, name) for name in MODALITIES}
        if not self.decoder_masks:
            modalities = {name: replace(m, decoded=m.tokens - m.visible) for name, m in modalities.items()}
        return replace(
            self, **{name: getattr(other, name) for name in names}, **modalities,
            fusion_depth=min(self.fusion_depth, other.fusion_depth), skip_blocks=other.skip_blocks if self.skip_blocks else (),
            stages=(other.depth - other.depth // 2, other.depth // 2) if self.stages else (),
        )  # fmt: skip


def _all_hidden(m: ModalityConfig, visible: int) -> ModalityConfig:
    """With encoder masks only: the decoder predicts all that is hidden."""
    return replace(m, visible=visible, decoded=m.tokens - visible)


_VIDEO_ONLY = ModelConfig(
    modalities=("video",), fusion="none", skip_blocks=(), decoder_masks=False, balanced_masks=False, frame_difference=False,
    encoder="vit", video=_all_hidden(VIDEO, 80),
)  # fmt: skip
_BASE = ModelConfig()
PRESETS = {
    # For tests: small frames, everything else as in the large ones.
    "tiny": ModelConfig(
        width=64, heads=1, depth=4, skip_blocks=(1, 2, 3), decoder_width=64, decoder_heads=1,
        video=ModalityConfig((16, 64, 64), (2, 16, 16), (2, 2, 4), visible=32, decoded=64),
    ),
    # For the demo on two CPU cores: 1.28 s of four frames. λ is between two cliffs: at the published one the contrast does not
    # leave chance in 900 steps; at 0.5 and above it takes from the encoders what they need to tell expressions apart.
    "demo": ModelConfig(
        width=64, heads=2, depth=2, skip_blocks=(1,), decoder_width=64, decoder_heads=2, decoder_depth=2, fusion_depth=1,
        contrastive_weight=0.05, temperature=0.1,
        video=ModalityConfig((4, 64, 64), (2, 16, 16), (1, 2, 4), visible=16, decoded=16),
        audio=ModalityConfig((128, 128), (16, 16), (4, 4), visible=32, decoded=32),
    ),
    "base": _BASE,
    "large": ModelConfig(width=640, heads=10, depth=12, skip_blocks=(3, 7, 11), decoder_width=512, decoder_heads=8),
    "huge": ModelConfig(width=768, heads=12, depth=15, skip_blocks=(4, 9, 14), decoder_width=640, decoder_heads=8),
    # Ours, beyond the published sizes: 1.5 billion parameters, for several GPUs (docs/scaling.md). Nobody has trained it.
    "giant": ModelConfig(width=1280, heads=20, depth=15, skip_blocks=(4, 9, 14), decoder_width=768, decoder_heads=12),
    "hicmae_base": ModelConfig(
        encoder="vit", fusion="cross", balanced_masks=False, decoder_masks=False,
        video=_all_hidden(VIDEO, 80), audio=_all_hidden(AUDIO, 26),
    ),
    "mae_dfer": _VIDEO_ONLY.replace(encoder="lgi", depth=16, balanced_masks=True, frame_difference=True),
    "svfap": _VIDEO_ONLY.replace(encoder="tpsbt", depth=21, stages=(12, 6, 3), token_order="released"),
    # Encoders whose published weights are something to begin with, at their published sizes.
    "videomae_base": _VIDEO_ONLY.replace(
        width=768, heads=12, depth=12, video=_all_hidden(ModalityConfig((16, 224, 224), (2, 16, 16), (2, 7, 14), 1, 1), 160)
    ),
    "audiomae_base": _VIDEO_ONLY.replace(
        modalities=("audio",), width=768, heads=12, depth=12,
        audio=_all_hidden(ModalityConfig((1024, 128), (16, 16), (4, 4), 1, 1), 102),
    ),
    # The paper's Tables 4 and 5, row by row; the other rows are hicmae_base and base. Table 6 is large with other fusion_depth.
    "ablation_lgi3": _BASE.replace(encoder="lgi", fusion="cross"),
    "ablation_lgi4": _BASE.replace(fusion="cross"),
    "ablation_dier": _BASE.replace(fusion="dier"),
    "ablation_hafe": _BASE.replace(fusion="hafe"),
}  # fmt: skip
