"""What all models are: encoders and a fusion as the configuration names them, and the layer that each parameter is of."""

from collections.abc import Sequence

from torch import nn

from avfmae.config import ModelConfig
from avfmae.models.decoder import Decoder
from avfmae.models.interfaces import Encoder, Fusion
from avfmae.models.registry import encoder_class, fusion_class

MODALITIES = ("video", "audio")


class AudioVisualModel(nn.Module):
    """Encoders, and where there are two a fusion.

    Args:
        cfg: names the encoder and the fusion.
        modalities: both, or one of them.
    """

    video_encoder: Encoder
    audio_encoder: Encoder

    def __init__(self, cfg: ModelConfig, modalities: Sequence[str] = MODALITIES):
        super().__init__()
        if not modalities or set(modalities) - set(MODALITIES):
            raise ValueError(f"modalities: got {tuple(modalities)}, expected one or both of {MODALITIES}")
        self.cfg, self.modalities = cfg, tuple(m for m in MODALITIES if m in modalities)
        encoder, fusion = encoder_class(cfg.encoder), fusion_class(cfg.fusion)
        for modality in self.modalities:
            self.add_module(f"{modality}_encoder", encoder(cfg, getattr(cfg, modality)))
        if len(self.modalities) == 2:
            self.fusion = fusion(cfg)

    @property
    def last_layer(self) -> int:
        """The layer of heads, norms and all that has no layer of its own."""
        return self.cfg.depth + self.cfg.fusion_depth + 1

    def layer_of(self, name: str) -> int:
        """The layer of a parameter for layer decay: embeddings 0, encoder block i is i + 1, fusion unit i is depth + i + 1."""
        part, _, rest = name.partition(".")
        kind = part_class(self.cfg, part)
        layer = kind.layer_of(rest) if kind else None
        if layer is None:
            return self.last_layer
        return layer + self.cfg.depth if part == "fusion" else layer


def part_class(cfg: ModelConfig, part: str) -> type[Encoder] | type[Fusion] | type[Decoder] | None:
    """The class of a model's part by its attribute's name; None for what is no part of its own."""
    if part == "fusion":
        return fusion_class(cfg.fusion)
    return {"encoder": encoder_class(cfg.encoder), "decoder": Decoder}.get(part.partition("_")[2])
