"""From a clip to tokens: patches, a linear embedding, and fixed positions.

Shapes: B batch, N tokens, C width, P numbers a patch (1536 for video, 256 for audio).
"""

import torch
from einops import rearrange
from torch import Tensor, nn

import avfmae_kernels as K
from avfmae.config import ModalityConfig
from avfmae.models.attention import Linear
from avfmae_kernels.arguments import FLOATS, check_shape
from avfmae_kernels.linear import compute_dtype

RESIDUAL = {"compute": None, "float32": torch.float32}  # the dtype of tokens; None: that of the layer that makes them


def sinusoid_positions(tokens: int, width: int) -> Tensor:
    """(N, C) fixed position table: angle p / 10000^(2⌊j/2⌋/C); sine on even columns j, cosine on odd ones."""
    column = torch.arange(width)
    angle = torch.arange(tokens, dtype=torch.float64)[:, None] / 10000 ** ((column // 2 * 2).double() / width)
    return torch.where(column % 2 == 0, angle.sin(), angle.cos()).float()


def audio_patches(audio: Tensor, patch: tuple[int, ...]) -> Tensor:
    """(B, 1, frames, mels) -> (B, N, P), tokens time-major."""
    return rearrange(audio, "b 1 (t p) (f q) -> b (t f) (p q)", p=patch[0], q=patch[1])


class PatchEmbed(nn.Module):
    """Embeds the named tokens only: one matrix product over their rows, instead of a convolution over all of the clip.

    ``proj.weight`` is the released convolution's weight with its kernel axes flattened.
    """

    positions: Tensor

    RELEASED_NAMES = ((r"\bembed\.proj\.", "patch_embed.proj."), (r"\bembed\.positions$", "pos_embed"))

    def __init__(self, m: ModalityConfig, width: int, residual: str = "compute"):
        super().__init__()
        self.m = m
        self.dtype = RESIDUAL[residual]
        self.is_video = len(m.size) == 3
        channels = 3 if self.is_video else 1
        self.kernel = (channels, *m.patch)
        self.proj = Linear(torch.Size(self.kernel).numel(), width)
        self.register_buffer("positions", sinusoid_positions(m.tokens, width), persistent=False)

    def rows(self, clip: Tensor, index: Tensor, boxes: Tensor | None = None) -> Tensor:
        """Normalised patch rows (B, M, P) of the tokens at index (B, M)."""
        if not self.is_video:
            check_shape("audio", clip, ("B", 1, *self.m.size), *FLOATS, torch.float64)
            patches = audio_patches(clip, self.m.patch)
            return patches.gather(1, index[..., None].expand(-1, -1, patches.shape[-1]))
        frames, *size = self.m.size
        check_shape("video", clip, ("B", frames, *(size if boxes is None else "HW"), 3), torch.uint8)
        dtype = compute_dtype(self.proj.weight)
        return K.gather_patches(clip, index, patch=self.m.patch, dtype=dtype, boxes=boxes, size=size)

    def forward(self, clip: Tensor, index: Tensor, boxes: Tensor | None = None) -> Tensor:
        """Tokens (B, M, C) of ``clip``, seen through ``boxes`` (B, 4), at ``index`` (B, M); positions added."""
        return K.assemble_tokens(self.proj(self.rows(clip, index, boxes)), None, self.positions, index, None, self.dtype)
