"""Fine-tuning: encoders and fusion under a task's head, from both modalities or from one (model §6)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from avfmae.config import ModelConfig
from avfmae.models.attention import Linear, add_norm, layer_norm
from avfmae.models.base import AudioVisualModel
from avfmae.models.registry import fusion_class


@dataclass
class FinetuningOutput:
    """logits (B, outputs); features (B, F): what the linear head reads, C numbers for each feature that is put into it."""

    logits: Tensor
    features: Tensor


class AVFMAEForFinetuning(AudioVisualModel):
    """Every member of the family with a linear head on pooled tokens: encoders, where there are two a fusion, LayerNorm, linear.

    What is pooled goes by the fusion. The mean of each modality's fused tokens; HiCMAE puts each modality's own feature before
    them, Σ_l softmax(w)_l of its encoder's blocks. Of one modality: that feature (HiCMAE), or the mean of the encoder's tokens,
    which a video-only member (fusion ``"none"``) leaves without the encoder's norm, as published.

    Args:
        cfg: names modalities, encoder and fusion. ``cfg.replace(modalities=("video",))`` is one modality of a member with two.
        num_outputs: classes, or regression targets.
        task: what the outputs are for; it is written into the weights' metadata, and the computation is the same for all.
    """

    FRESH = ("head_norm.", "head.", "video_layer_weights", "audio_layer_weights")  # not in a pre-training file

    def __init__(self, cfg: ModelConfig, num_outputs: int, task: str = "classification"):
        super().__init__(cfg)
        self.task = task
        kind, count = fusion_class(cfg.fusion), len(cfg.modalities)
        self.unimodal = kind.beside_unimodal
        needs_levels = self.unimodal or (kind.reads_joint and count == 2)
        for modality in cfg.modalities:
            encoder = getattr(self, f"{modality}_encoder")
            encoder.needs_levels = needs_levels
            if needs_levels:
                weights = nn.Parameter(torch.full((cfg.depth,), 1 / cfg.depth))
                self.register_parameter(f"{modality}_layer_weights", weights)
            if cfg.fusion == "none" and count == 1:
                encoder.norm = None
        width = cfg.width * count * (1 + (self.unimodal and count == 2))
        self.head_norm = layer_norm(width)
        self.head: nn.Module = Linear(width, num_outputs)
        self.init_weights()

    def init_weights(self) -> None:
        """Encoders and head truncated-normal(0.02), fusion Xavier-uniform; a pre-trained file then replaces all but the head.
        HiCMAE's head keeps torch's default."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear) and not name.endswith("embed.proj") and not (name == "head" and self.unimodal):
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
        self.check_inputs(video=video, audio=audio)
        clips = {"video": video, "audio": audio}
        found = {name: getattr(self, f"{name}_encoder").encode_all(clips[name]) for name in self.cfg.modalities}
        own = [
            weighted_layers(features.levels, getattr(self, f"{name}_layer_weights"))  # (B, J, C)
            for name, features in found.items()
            if features.levels is not None and hasattr(self, f"{name}_layer_weights")
        ]
        pooled = [feature.mean(1) for feature in own] if self.unimodal else []
        tokens = [features.tokens for features in found.values()]
        if len(tokens) == 2:
            tokens = self.fusion(*tokens, torch.cat(own, dim=-1) if self.fusion.reads_joint else None)
        if len(found) == 2 or not self.unimodal:
            pooled += [t.mean(1) for t in tokens]
        _, features = add_norm(torch.cat(pooled, dim=-1), None, self.head_norm)
        return FinetuningOutput(self.head(features), features)


def weighted_layers(x: Tensor, weights: Tensor) -> Tensor:
    """Σ_l softmax(w)_l · x_l: (B, J, L, C) -> (B, J, C), eq. 8."""
    return torch.einsum("bjlc,l->bjc", x, weights.softmax(0).to(x.dtype))
