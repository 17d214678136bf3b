"""Masked pre-training: from a clip and its masks to the loss (§3.1–3.4, eq. 1)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avfmae.config import ModelConfig
from avfmae.losses import Gathered, info_nce, reconstruction_loss
from avfmae.masking import DualMask
from avfmae.models.base import AudioVisualModel
from avfmae.models.decoder import Decoder
from avfmae.world import world_size


@dataclass
class PretrainingOutput:
    """Losses are scalars; loss = video + audio + λ·contrastive. What a model of one modality has not is None.

    Attributes:
        pred_video: (B, decoded, 1536) predictions of the decoded tokens, in the order of ``masks.video.decoded``.
        pred_audio: (B, decoded, 256).
        logits: at each skip level (B, B), v·aᵀ/τ, shallowest level first.
    """

    loss: Tensor
    loss_video: Tensor | None
    loss_audio: Tensor | None
    loss_contrastive: Tensor | None
    pred_video: Tensor | None
    pred_audio: Tensor | None
    logits: list[Tensor]


@dataclass
class Encoded:
    """One modality's visible tokens (B, N, C), its skip features, shallowest first, and the tokens' index (B, N)."""

    tokens: Tensor
    skips: list[Tensor]
    index: Tensor


class AVFMAEForPretraining(AudioVisualModel):
    """Every member of the family with its decoders: AVF-MAE++, HiCMAE, MAE-DFER, SVFAP and what lies between, as ``cfg`` says."""

    def __init__(self, cfg: ModelConfig):
        if len(cfg.modalities) == 1 and cfg.fusion != "none":
            raise ValueError(f"fusion: got {cfg.fusion!r} with modalities={cfg.modalities}, expected 'none' in pre-training")
        super().__init__(cfg)
        for modality in cfg.modalities:
            self.add_module(f"{modality}_decoder", Decoder(cfg, getattr(cfg, modality)))
        init_xavier(self)

    def encode(
        self, video: Tensor | None, audio: Tensor | None, masks: DualMask, boxes: Tensor | None = None
    ) -> dict[str, Encoded]:
        """What the encoders make of the visible tokens, by modality."""
        self.check_inputs(video=video, audio=audio)
        clips = {"video": video, "audio": audio}
        sizes = {name: len(clips[name]) for name in self.cfg.modalities} | {"masks": len(masks)}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"{', '.join(sizes)}: got batches of {', '.join(map(str, sizes.values()))}")
        encoded = {}
        for name in self.cfg.modalities:
            if (mask := getattr(masks, name)) is None:
                raise ValueError(f"masks: have none for {name}, expected masks for modalities {self.cfg.modalities}")
            seen = boxes if name == "video" else None
            encoded[name] = Encoded(*getattr(self, f"{name}_encoder").encode_visible(clips[name], mask.visible, seen))
        if self.cfg.token_order == "released" and "video" in encoded:
            encoded["video"].index = masks.video.visible  # tokens are region-major, positions raster: the released defect
        return encoded

    def decode(self, encoded: dict[str, Encoded], masks: DualMask) -> dict[str, Tensor]:
        """Predictions of the decoded tokens, (B, decoded, 1536) of video and (B, decoded, 256) of audio."""
        tokens = [e.tokens for e in encoded.values()]
        fused = self.fusion(*tokens) if len(tokens) == 2 else tokens
        return {
            name: getattr(self, f"{name}_decoder")(t, e.skips, e.index, getattr(masks, name).decoded)
            for (name, e), t in zip(encoded.items(), fused, strict=True)
        }

    def forward(
        self, video: Tensor | None, audio: Tensor | None, masks: DualMask, boxes: Tensor | None = None
    ) -> PretrainingOutput:
        """Reconstructs the decoded patches from the visible ones.

        Args:
            video: (B, T, H, W, 3) uint8, RGB; None, or ignored, where the model has no video.
            audio: (B, 1, frames, mels) float, normalised log-mel filterbank; None, or ignored, where the model has no audio.
            masks: of the same B clips, on the same device.
            boxes: (B, 4) float32, what is seen of each clip: left, top, right, bottom in pixels of its frames, which may then
                have any size. The crop is resampled where its patches are read, and never written. None: the clips are cropped
                already.
        """
        cfg, clips = self.cfg, {"video": video, "audio": audio}
        encoded = self.encode(video, audio, masks, boxes)
        contrast = Contrast(cfg, *(e.skips for e in encoded.values())) if len(encoded) == 2 and cfg.skip_blocks else None
        predictions = self.decode(encoded, masks)
        losses = {}
        for name, pred in predictions.items():
            m = getattr(cfg, name)
            seen = (boxes, m.size[1:]) if name == "video" else (None, None)
            losses[name] = reconstruction_loss(pred, clips[name], getattr(masks, name), m.patch, *seen, cfg.frame_difference)
        loss, loss_contrastive, logits = sum(losses.values()), None, []
        if contrast is not None:
            loss_contrastive, logits = contrast.loss()
            loss = loss + cfg.contrastive_weight * loss_contrastive
        return PretrainingOutput(
            loss, losses.get("video"), losses.get("audio"), loss_contrastive, predictions.get("video"), predictions.get("audio"),
            logits,
        )  # fmt: skip


class Contrast:
    """HCMCL: the modalities' skip features against each other. Other processes' travel between the making of it and its loss."""

    def __init__(self, cfg: ModelConfig, video: list[Tensor], audio: list[Tensor]):
        self.cfg, clips = cfg, torch.stack([skip.mean(1) for skip in (*video, *audio)])
        self.features = F.normalize(clips.float(), dim=-1)  # (2 · levels, B, C), video's first
        shared = cfg.gather_negatives and world_size() > 1
        self.everyone = Gathered(self.features) if shared else None

    def loss(self) -> tuple[Tensor, list[Tensor]]:
        """The sum over levels, and the logits of each."""
        others = self.everyone.arrived().chunk(2) if self.everyone else None
        loss, logits = info_nce(*self.features.chunk(2), self.cfg.temperature, self.cfg.negatives, others)
        return loss, list(logits)


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
