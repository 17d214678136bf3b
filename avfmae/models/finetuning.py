"""AVF-MAE++ with a task's head: classification or regression, from both modalities or from one (model §6)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from avfmae.config import ModelConfig
from avfmae.models.attention import Linear, add_norm, layer_norm
from avfmae.models.iavcl import IAVCL
from avfmae.models.lgi import LGIEncoder

MODALITIES = ("video", "audio")


@dataclass
class FinetuningOutput:
    """logits (B, outputs); features (B, 2C), or (B, C) from one modality: what the linear head reads."""

    logits: Tensor
    features: Tensor


class AVFMAEForFinetuning(nn.Module):
    """Encoders, fusion and a linear head on pooled region tokens.

    Args:
        cfg: of family ``"avfmae"``.
        num_outputs: classes, or regression targets.
        task: ``"classification"`` or ``"regression"``; the outputs are logits or values, the computation is the same.
        modalities: ``("video", "audio")``, or one of them: that encoder alone, without fusion.
    """

    def __init__(
        self,
        cfg: ModelConfig,
        num_outputs: int,
        task: Literal["classification", "regression"] = "classification",
        modalities: Sequence[str] = MODALITIES,
    ):
        super().__init__()
        if cfg.family != "avfmae":
            raise ValueError(f"cfg: family {cfg.family!r}, expected 'avfmae'")
        if task not in ("classification", "regression"):
            raise ValueError(f"task: got {task!r}, expected 'classification' or 'regression'")
        if not modalities or set(modalities) - set(MODALITIES):
            raise ValueError(f"modalities: got {tuple(modalities)}, expected one or both of {MODALITIES}")
        self.cfg, self.task, self.modalities = cfg, task, tuple(m for m in MODALITIES if m in modalities)
        if "video" in self.modalities:
            self.video_encoder = LGIEncoder(cfg, cfg.video)
        if "audio" in self.modalities:
            self.audio_encoder = LGIEncoder(cfg, cfg.audio)
        if len(self.modalities) == 2:
            self.fusion = IAVCL(cfg)
            self.video_layer_weights = nn.Parameter(torch.full((cfg.depth,), 1 / cfg.depth))
            self.audio_layer_weights = nn.Parameter(torch.full((cfg.depth,), 1 / cfg.depth))
        self.head_norm = layer_norm(cfg.width * len(self.modalities))
        self.head = Linear(cfg.width * len(self.modalities), num_outputs)
        self.init_weights()

    def init_weights(self) -> None:
        """Encoders and head truncated-normal(0.02), fusion Xavier-uniform; a pre-trained file then replaces all but the head."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear) and not name.endswith("embed.proj"):
                if name.startswith("fusion"):
                    nn.init.xavier_uniform_(module.weight)
                else:
                    nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for encoder in (getattr(self, f"{m}_encoder") for m in self.modalities):
            nn.init.trunc_normal_(encoder.region_tokens, std=0.02, a=-0.02, b=0.02)

    def forward(self, video: Tensor | None = None, audio: Tensor | None = None) -> FinetuningOutput:
        """Logits of a batch of clips.

        Args:
            video: (B, T, H, W, 3) uint8, RGB; ignored by an audio-only model.
            audio: (B, 1, frames, mels) float, normalised log-mel filterbank; ignored by a video-only model.
        """
        for name, clip in (("video", video), ("audio", audio)):
            if name in self.modalities and clip is None:
                raise ValueError(f"{name}: is None, but this model was built for modalities {self.modalities}")
        if len(self.modalities) == 1:
            encoder, clip = (self.video_encoder, video) if self.modalities == ("video",) else (self.audio_encoder, audio)
            pooled = encoder.encode_regions(clip)[:, :, -1].mean(1)
        else:
            v = self.video_encoder.encode_regions(video)  # (B, R, L, C)
            a = self.audio_encoder.encode_regions(audio)
            joint = torch.cat(
                [_weighted_layers(v, self.video_layer_weights), _weighted_layers(a, self.audio_layer_weights)], dim=-1
            )  # (B, R, 2C)
            v, a = self.fusion(v[:, :, -1], a[:, :, -1], joint)
            pooled = torch.cat([v.mean(1), a.mean(1)], dim=-1)
        _, features = add_norm(pooled, None, self.head_norm)
        return FinetuningOutput(self.head(features), features)


def _weighted_layers(x: Tensor, weights: Tensor) -> Tensor:
    """Σ_l softmax(w)_l · x_l: (B, R, L, C) -> (B, R, C), eq. 8."""
    return torch.einsum("brlc,l->brc", x, weights.softmax(0).to(x.dtype))
