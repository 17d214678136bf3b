"""assemble_tokens in PyTorch: oracle, fallback, documentation."""

import torch
from torch import Tensor


def _at(positions: Tensor, index: Tensor) -> Tensor:
    """Rows of the table; NaN where there is none."""
    outside = (index < 0) | (index >= len(positions))
    return positions[index.masked_fill(outside, 0)].masked_fill(outside[..., None], torch.nan)


def assemble_tokens(
    visible: Tensor, mask_token: Tensor | None, positions: Tensor, visible_index: Tensor, mask_index: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    out = (visible + _at(positions, visible_index)).to(dtype)
    if mask_index is None:
        return out
    return torch.cat([out, (mask_token + _at(positions, mask_index)).to(dtype)], dim=1)
