"""Tokens with their positions, in order, written once: the decoder's sequence, and every embedded sequence before it."""

import torch
from torch import Tensor

from avfmae_kernels.arguments import check_devices, check_floats, check_range, check_shape
from avfmae_kernels.assemble_tokens import reference
from avfmae_kernels.dispatch import call, register, register_gradient

register(
    "assemble_tokens",
    "(Tensor visible, Tensor? mask_token, Tensor positions, Tensor visible_index, Tensor? mask_index, ScalarType dtype)"
    " -> Tensor",
    reference.assemble_tokens,
    triton="avfmae_kernels.assemble_tokens.triton",
)


def assemble_tokens(
    visible: Tensor, mask_token: Tensor | None, positions: Tensor, visible_index: Tensor, mask_index: Tensor | None,
    dtype: torch.dtype | None = None,
) -> Tensor:  # fmt: skip
    r"""Visible tokens, then mask tokens, each with its position added (AVF-MAE++ §3.1, the decoder's input).

    .. math:: out_i = visible_i + positions_{visible\_index_i}, \qquad out_{N_v + j} = mask\_token + positions_{mask\_index_j}.

    Gradient flows to ``visible`` and ``mask_token``; positions are a fixed table. Floor: bytes. Forward reads the visible tokens
    and their positions (which stay in cache) and writes the sequence; backward hands a slice on and sums the rest.

    Args:
        visible: (B, Nv, C) float32, bfloat16 or float16, contiguous.
        mask_token: (C), or None: no mask tokens, the visible ones with their positions alone.
        positions: (T, C), contiguous.
        visible_index: (B, Nv) int64, 0 to T-1. mask_index: (B, Nm) int64, or None beside a None ``mask_token``.
        dtype: of the result; None: that of ``visible``.

    Returns:
        (B, Nv + Nm, C). Sums are made in float32.

    Raises:
        IndexError: an index is outside the positions (CPU); on a GPU that token is NaN instead.
    """
    if visible.ndim != 3 or not len(visible):
        raise ValueError(f"visible: got {tuple(visible.shape)}, expected (B, Nv, C) with B at least 1")
    B, Nv, C = visible.shape
    check_shape("positions", positions, ("T", C))
    check_shape("visible_index", visible_index, (B, Nv), torch.int64)
    if (mask_token is None) != (mask_index is None):
        raise ValueError("mask_token, mask_index: got one of them, expected both or neither")
    if mask_token is not None and mask_index is not None:
        check_shape("mask_token", mask_token, (C,))
        check_shape("mask_index", mask_index, (B, "Nm"), torch.int64)
        check_floats(mask_token=mask_token)
    check_devices(visible=visible, positions=positions, visible_index=visible_index, mask_token=mask_token, mask_index=mask_index)
    check_floats(visible=visible)
    check_floats(positions=positions)
    check_range("visible_index", visible_index, len(positions))
    if mask_index is not None:
        check_range("mask_index", mask_index, len(positions))
    return call(
        "assemble_tokens", visible.device,
        visible.contiguous(), mask_token, positions.contiguous(), visible_index.contiguous(),
        None if mask_index is None else mask_index.contiguous(), dtype or visible.dtype,
    )  # fmt: skip


def _save(ctx, inputs, output):
    visible, mask_token = inputs[:2]
    ctx.tokens, ctx.dtype = visible.shape[1], visible.dtype
    ctx.mask_dtype = None if mask_token is None else mask_token.dtype


def _gradient(ctx, grad):
    mask = None if ctx.mask_dtype is None else grad[:, ctx.tokens :].sum((0, 1)).to(ctx.mask_dtype)
    return grad[:, : ctx.tokens].to(ctx.dtype), mask, None, None, None, None


register_gradient("assemble_tokens", _save, _gradient)
