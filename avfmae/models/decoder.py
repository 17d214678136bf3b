"""The pre-training decoder of one modality, with skip connections to the encoder (HiCMAE; AVF-MAE++ eq. 2).

Shapes: B batch, Nv visible tokens, Nd decoded tokens, C encoder width, D decoder width.
"""

import torch
from torch import Tensor, nn

import avfmae_kernels as K
from avfmae.config import ModalityConfig, ModelConfig
from avfmae.models.attention import Linear, flash_attention, layer_norm, pre_norm
from avfmae.models.embed import RESIDUAL, sinusoid_positions
from avfmae.models.recompute import run
from avfmae.models.vit import ViTBlock


class Decoder(nn.Module):
    """A linear layer C→D and positions for fused tokens and skip features; blocks, the last of which read a skip each; a head."""

    positions: Tensor

    RELEASED_NAMES = ViTBlock.RELEASED_NAMES

    def __init__(self, cfg: ModelConfig, m: ModalityConfig):
        super().__init__()
        self.recompute, self.dtype = cfg.recompute, RESIDUAL[cfg.residual]
        if cfg.attention == "flash":
            flash_attention()  # refused now rather than in the first step
        width, heads, plain = cfg.decoder_width, cfg.decoder_heads, cfg.decoder_depth - len(cfg.skip_blocks)
        self.embed = Linear(cfg.width, width, bias=False)  # of the fused tokens and of each skip feature
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.register_buffer("positions", sinusoid_positions(m.tokens, width), persistent=False)
        self.blocks = nn.ModuleList(
            ViTBlock(width, heads, cross=i >= plain, backend=cfg.attention) for i in range(cfg.decoder_depth)
        )
        self.norm = layer_norm(width)
        channels = 3 if len(m.size) == 3 else 1
        self.head = Linear(width, channels * torch.Size(m.patch).numel())

    def forward(self, fused: Tensor, skips: list[Tensor], visible: Tensor, decoded: Tensor) -> Tensor:
        """Predicts the patches of the decoded tokens.

        Args:
            fused: (B, Nv, C) visible tokens, after the fusion where there is one.
            skips: encoder features (B, Nv, C), shallowest first; the deepest is read first.
            visible: (B, Nv) int64, the position that each visible token gets.
            decoded: (B, Nd) int64, the tokens to predict; every one is a mask token, also where the encoder saw it.

        Returns:
            (B, Nd, P).
        """
        x = K.assemble_tokens(self.embed(fused), self.mask_token, self.positions, visible, decoded, self.dtype)
        skips = [K.assemble_tokens(self.embed(skip), None, self.positions, visible, None, self.dtype) for skip in skips]
        branch, contexts = None, [*[None] * (len(self.blocks) - len(skips)), *reversed(skips)]
        for block, context in zip(self.blocks[:-1], contexts[:-1], strict=True):
            x, branch = run(block, x, branch, context, recompute=self.recompute)
        x, branch = self.blocks[-1](x, branch, contexts[-1], last=decoded.shape[1])
        return pre_norm(x, branch, self.norm, self.head.weight, self.head.bias)[1]

    @classmethod
    def layer_of(cls, name: str) -> int | None:
        """The layer of a parameter for layer decay: what makes tokens is 0; None: the model's last."""
        return 0 if name.startswith("embed.") or name == "mask_token" else None
