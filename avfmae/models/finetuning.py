"""Fine-tuning: encoders and fusion under a task's head, from both modalities or from one (model §6)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from avfmae.config import ModelConfig
from avfmae.models.attention import Linear, add_norm, layer_norm
from avfmae.models.base import MODALITIES, AudioVisualModel
from avfmae.models.registry import fusion_class


@dataclass
class FinetuningOutput:
    """logits (B, outputs); features (B, 2C), or (B, C) from one modality: what the linear head reads."""

    logits: Tensor
    features: Tensor


class AVFMAEForFinetuning(AudioVisualModel):
    """Encoders, fusion and a linear head on pooled tokens.

    Args:
        cfg: names the encoder and the fusion.
        num_outputs: classes, or regression targets.
        task: what the outputs are for; it is written into the weights' metadata, and the computation is the same for all.
        modalities: ``("video", "audio")``, or one of them: that encoder alone, without fusion.
    """

    FRESH = ("head_norm.", "head.", "video_layer_weights", "audio_layer_weights")  # not in a pre-training file

    def __init__(self, cfg: ModelConfig, num_outputs: int, task: str = "classification", modalities: Sequence[str] = MODALITIES):
        if not fusion_class(cfg.fusion).finetunes:
            raise ValueError(f"fusion: {cfg.fusion!r} with encoder {cfg.encoder!r} has no fine-tuning model")
        super().__init__(cfg, modalities)
        self.task = task
        if len(self.modalities) == 2:
            self.video_layer_weights = nn.Parameter(torch.full((cfg.depth,), 1 / cfg.depth))
            self.audio_layer_weights = nn.Parameter(torch.full((cfg.depth,), 1 / cfg.depth))
        self.head_norm = layer_norm(cfg.width * len(self.modalities))
        self.head: nn.Module = Linear(cfg.width * len(self.modalities), num_outputs)
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
        for name, parameter in self.named_parameters():
            if name.endswith("region_tokens"):
                nn.init.trunc_normal_(parameter, std=0.02, a=-0.02, b=0.02)

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
            pooled = encoder.encode_all(clip).tokens.mean(1)
        else:
            v, a = self.video_encoder.encode_all(video), self.audio_encoder.encode_all(audio)
            weights = self.video_layer_weights, self.audio_layer_weights
            joint = torch.cat([_weighted_layers(v.levels, weights[0]), _weighted_layers(a.levels, weights[1])], dim=-1)
            pooled = torch.cat([tokens.mean(1) for tokens in self.fusion(v.tokens, a.tokens, joint)], dim=-1)
        _, features = add_norm(pooled, None, self.head_norm)
        return FinetuningOutput(self.head(features), features)


def _weighted_layers(x: Tensor, weights: Tensor) -> Tensor:
    """Σ_l softmax(w)_l · x_l: (B, J, L, C) -> (B, J, C), eq. 8."""
    return torch.einsum("bjlc,l->bjc", x, weights.softmax(0).to(x.dtype))
