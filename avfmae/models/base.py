"""What all models are: encoders and a fusion as the configuration names them, and the layer that each parameter is of."""

from pathlib import Path
from typing import Any, Self

from torch import nn

import avfmae
from avfmae.config import ModelConfig
from avfmae.models.decoder import Decoder
from avfmae.models.interfaces import Encoder, Fusion
from avfmae.models.registry import encoder_class, fusion_class


class AudioVisualModel(nn.Module):
    """Encoders, and where there are two a fusion, as ``cfg`` names them.

    Attributes:
        about: what the weights that were loaded say besides: the task, its classes, how clips are read.
    """

    video_encoder: Encoder
    audio_encoder: Encoder
    about: dict[str, Any]

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.cfg, self.about = cfg, {}
        encoder, fusion = encoder_class(cfg.encoder), fusion_class(cfg.fusion)
        for modality in cfg.modalities:
            self.add_module(f"{modality}_encoder", encoder(cfg, getattr(cfg, modality)))
        if len(cfg.modalities) == 2:
            self.fusion = fusion(cfg)
            regions = self.video_encoder.regions, self.audio_encoder.regions
            if fusion.reads_joint and regions[0] != regions[1]:
                raise ValueError(
                    f"video.region, audio.region: make {regions[0]} and {regions[1]} regions, expected equally many with "
                    f"fusion={cfg.fusion!r}, which joins them"
                )

    def check_inputs(self, **given: object) -> None:
        """Raises ValueError where a modality of the model is missing."""
        for name in self.cfg.modalities:
            if given[name] is None:
                raise ValueError(f"{name}: is None, expected a batch of clips for a model of modalities {self.cfg.modalities}")

    @property
    def last_layer(self) -> int:
        """The layer of heads, norms and all that has no layer of its own."""
        return self.cfg.depth + (0 if self.cfg.fusion == "none" else self.cfg.fusion_depth) + 1

    def layer_of(self, name: str) -> int:
        """The layer of a parameter for layer decay: embeddings 0, encoder block i is i + 1, fusion unit i is depth + i + 1."""
        part, _, rest = name.partition(".")
        kind = part_class(self.cfg, part)
        layer = kind.layer_of(rest) if kind else None
        if layer is None:
            return self.last_layer
        return layer + self.cfg.depth if part == "fusion" else layer

    @classmethod
    def from_pretrained(cls, name: str | Path, **options: Any) -> Self:
        """A model with its weights, in evaluation mode: of a folder that :meth:`save_pretrained` or a training run wrote, of a
        file of weights, or of ``owner/name`` on Hugging Face's hub.

        Args:
            options: ``num_outputs``: of a head that is made anew, on pre-trained encoders; others are of huggingface_hub's
                ``snapshot_download``, such as ``revision`` and ``token``.

        Raises:
            FileNotFoundError: there is no such model. ValueError: it is of the other kind, pre-trained or fine-tuned.
        """
        return avfmae.checkpoints.load_pretrained(cls, name, **options)

    def save_pretrained(self, folder: str | Path, **about: Any) -> Path:
        """Writes ``config.json``, ``model.safetensors`` and a model card.

        Args:
            about: what goes with the weights, such as ``classes``; what the model was loaded with is kept.
        """
        return avfmae.save_pretrained(self, folder, **about)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Uploads such a folder to Hugging Face's hub as ``owner/name``. ``options``: see ``avfmae.checkpoints.push_to_hub``."""
        return avfmae.checkpoints.push_to_hub(self, repo_id, **options)


def part_class(cfg: ModelConfig, part: str) -> type[Encoder] | type[Fusion] | type[Decoder] | None:
    """The class of a model's part by its attribute's name; None for what is no part of its own."""
    if part == "fusion":
        return fusion_class(cfg.fusion)
    return {"encoder": encoder_class(cfg.encoder), "decoder": Decoder}.get(part.partition("_")[2])
