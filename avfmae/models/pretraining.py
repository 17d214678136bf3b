"""Masked pre-training: from a clip and its masks to the loss (§3.1–3.4, eq. 1)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avfmae.config import ModelConfig
from avfmae.losses import Gathered, info_nce, reconstruction_loss, world_size
from avfmae.masking import DualMask
from avfmae.models.base import AudioVisualModel
from avfmae.models.decoder import Decoder


@dataclass
class PretrainingOutput:
    """Losses are scalars; loss = video + audio + λ·contrastive.

    Attributes:
        pred_video: (B, decoded, 1536) predictions of the decoded tokens, in the order of ``masks.video.decoded``.
        pred_audio: (B, decoded, 256).
        logits: at each skip level (B, B), v·aᵀ/τ, shallowest level first.
    """

    loss: Tensor
    loss_video: Tensor
    loss_audio: Tensor
    loss_contrastive: Tensor
    pred_video: Tensor
    pred_audio: Tensor
    logits: list[Tensor]


@dataclass
class Encoded:
    """One modality's visible tokens (B, N, C), its skip features, shallowest first, and the tokens' index (B, N)."""

    tokens: Tensor
    skips: list[Tensor]
    index: Tensor


class AVFMAEForPretraining(AudioVisualModel):
    """Every member of the family with its decoders: AVF-MAE++ and HiCMAE, as ``cfg.encoder`` and ``cfg.fusion`` say."""

    def __init__(self, cfg: ModelConfig):
        super().__init__(cfg)
        self.video_decoder, self.audio_decoder = Decoder(cfg, cfg.video), Decoder(cfg, cfg.audio)
        init_xavier(self)

    def encode(self, video: Tensor, audio: Tensor, masks: DualMask, boxes: Tensor | None = None) -> tuple[Encoded, Encoded]:
        """What the encoders make of the visible tokens of each modality."""
        if not len(video) == len(audio) == len(masks):
            raise ValueError(f"video, audio, masks: got batches of {len(video)}, {len(audio)} and {len(masks)}")
        v = Encoded(*self.video_encoder.encode_visible(video, masks.video.visible, boxes))
        a = Encoded(*self.audio_encoder.encode_visible(audio, masks.audio.visible))
        if self.cfg.token_order == "released":
            v.index = masks.video.visible  # tokens are region-major, positions raster: the released defect
        return v, a

    def decode(self, v: Encoded, a: Encoded, masks: DualMask) -> tuple[Tensor, Tensor]:
        """Predictions of the decoded tokens, (B, decoded, 1536) and (B, decoded, 256)."""
        video, audio = self.fusion(v.tokens, a.tokens)
        return (
            self.video_decoder(video, v.skips, v.index, masks.video.decoded),
            self.audio_decoder(audio, a.skips, a.index, masks.audio.decoded),
        )

    def forward(self, video: Tensor, audio: Tensor, masks: DualMask, boxes: Tensor | None = None) -> PretrainingOutput:
        """Reconstructs the decoded patches from the visible ones.

        Args:
            video: (B, T, H, W, 3) uint8, RGB.
            audio: (B, 1, frames, mels) float, normalised log-mel filterbank.
            masks: of the same B clips, on the same device.
            boxes: (B, 4) float32, what is seen of each clip: left, top, right, bottom in pixels of its frames, which may then
                have any size. The crop is resampled where its patches are read, and never written. None: the clips are cropped
                already.
        """
        cfg = self.cfg
        v, a = self.encode(video, audio, masks, boxes)
        features = [F.normalize(skip.mean(1).float(), dim=-1) for skip in (*v.skips, *a.skips)]
        shared = cfg.gather_negatives and world_size() > 1
        everyone = Gathered(features) if shared else None  # travels while the decoders work
        pred_video, pred_audio = self.decode(v, a, masks)
        loss_video = reconstruction_loss(pred_video, video, masks.video, cfg.video.patch, boxes, cfg.video.size[1:])
        loss_audio = reconstruction_loss(pred_audio, audio, masks.audio, cfg.audio.patch)
        levels = len(v.skips)
        contrasts = [
            info_nce(features[k], features[levels + k], cfg.temperature, cfg.negatives,
                     (everyone[k], everyone[levels + k]) if everyone else None)
            for k in range(levels)
        ]  # fmt: skip
        loss_contrastive = torch.stack([loss for loss, _ in contrasts]).sum()
        loss = loss_video + loss_audio + cfg.contrastive_weight * loss_contrastive
        return PretrainingOutput(
            loss, loss_video, loss_audio, loss_contrastive, pred_video, pred_audio, [logits for _, logits in contrasts]
        )


def init_xavier(model: nn.Module) -> None:
    """Linear layers Xavier-uniform with zero bias, tokens normal(0, 0.02) cut at ±0.02; embeddings keep torch's default."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and not name.endswith("embed") and not name.endswith("embed.proj"):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for name, parameter in model.named_parameters():
        if name.endswith(("region_tokens", "mask_token")):
            nn.init.trunc_normal_(parameter, std=0.02, a=-0.02, b=0.02)
