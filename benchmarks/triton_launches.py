"""Every Triton launch of the presets' pre-training and fine-tuning steps, noted down from tensors without memory."""

from collections.abc import Callable

import torch

from avfmae_kernels import chip
from avfmae_kernels.add_layer_norm import triton as add_layer_norm
from avfmae_kernels.arguments import FLOATS, fits_a_tile
from avfmae_kernels.assemble_tokens import triton as assemble_tokens
from avfmae_kernels.column_sum import triton as column_sum
from avfmae_kernels.cross_attention import triton as cross_attention
from avfmae_kernels.gated_sum import triton as gated_sum
from avfmae_kernels.gather_patches import triton as gather_patches
from avfmae_kernels.gelu_backward import triton as gelu_backward
from avfmae_kernels.masked_patch_loss import triton as masked_patch_loss
from avfmae_kernels.region_attention import triton as region_attention
from avfmae_kernels.triton_tools import Launch, recorded

# Width and heads, sequences that attend to themselves, queries and keys. The video decoder's 480 tokens to themselves are
# scaled_dot_product_attention's.
ENCODERS = ((512, 8), (640, 10), (768, 12))
ENCODER_SEQUENCES = (2, 4, 8, 11, 17, 24, 80, 101)
ENCODER_PAIRS = ((80, 8), (24, 8), (800, 8), (128, 8), (8, 80), (8, 24), (8, 800), (8, 128), (80, 24), (24, 80))
DECODERS = ((384, 6), (512, 8), (640, 8))
DECODER_SEQUENCES = (88,)
DECODER_PAIRS = ((480, 80), (88, 24))
BATCH = 4  # no kernel is specialised by it
WIDE, INDEX = torch.float32, torch.int64


def record_launches(capability: int) -> list[Launch]:
    """The launches of every preset, in every dtype that the kernels compute in, but for what dispatch keeps from such a chip."""
    encoders = [(*shape, ENCODER_SEQUENCES, ENCODER_PAIRS) for shape in ENCODERS]
    decoders = [(*shape, DECODER_SEQUENCES, DECODER_PAIRS) for shape in DECODERS]
    with recorded() as launches:
        for dtype in FLOATS:
            for width, heads, sequences, pairs in encoders + decoders:
                _attention(capability, dtype, width, heads, sequences, pairs)
                _rows(dtype, width)
            _clips(dtype)
    return launches


def _empty(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _attention(capability: int, dtype: torch.dtype, C: int, heads: int, sequences: tuple, pairs: tuple) -> None:
    def on_chip(op: Callable, *args) -> None:
        if chip.why_not(op.__name__, "triton", capability, args) is None:
            op(*args)

    for S in (S for S in sequences if fits_a_tile(S, C // heads)):
        qkv, grad = _empty(BATCH, S, 3 * C, dtype=dtype), _empty(BATCH, S, C, dtype=dtype)
        on_chip(region_attention.region_attention, qkv, heads)
        on_chip(region_attention.region_attention_backward, grad, qkv, heads, True)
    for Nq, Nk in (pair for pair in pairs if fits_a_tile(min(pair), C // heads)):
        q, kv = _empty(BATCH, Nq, C, dtype=dtype), _empty(BATCH, Nk, 2 * C, dtype=dtype)
        on_chip(cross_attention.cross_attention, q, kv, heads)
        on_chip(cross_attention.cross_attention_backward, q, q, kv, heads, True)


def _rows(dtype: torch.dtype, C: int) -> None:
    """What works on rows of C numbers; the residual stream is in the dtype or in float32."""
    branch = _empty(BATCH, 8, C, dtype=dtype)
    stats, parts = _empty(32, 2, dtype=WIDE), _empty(2, 2, C, dtype=WIDE)
    for stream in {dtype, WIDE}:
        x, w = _empty(BATCH, 8, C, dtype=stream), _empty(C, dtype=stream)
        add_layer_norm.add_layer_norm(x, branch, w, w, 1e-6, x, branch, stats)
        add_layer_norm.add_layer_norm(x, None, w, w, 1e-6, None, branch, stats)
        for grad_residual in (None, branch):
            add_layer_norm.add_layer_norm_backward(x, branch, x, stats, w, w, x, grad_residual, branch, parts)
        gate, value = _empty(32, C, dtype=dtype), _empty(32, C, dtype=stream)
        gated_sum.gated_sum(gate, value, gate, value)
        gated_sum.gated_sum_backward(value, gate, value, gate, value)
    hidden = _empty(BATCH, 4 * C, dtype=dtype)
    gelu_backward.gelu_backward(hidden, hidden, dtype)
    column_sum.column_sum(hidden, dtype)
    column_sum.column_sum(parts.flatten(1), WIDE)
    visible, table, token = _empty(BATCH, 80, C, dtype=dtype), _empty(800, C, dtype=WIDE), _empty(C, dtype=WIDE)
    seen, masked = _empty(BATCH, 80, dtype=INDEX), _empty(BATCH, 400, dtype=INDEX)
    assemble_tokens.assemble_tokens(visible, token, table, seen, masked, WIDE)
    assemble_tokens.assemble_tokens(visible, None, table, seen, None, WIDE)


def _clips(dtype: torch.dtype) -> None:
    """What reads clips and spectrograms."""
    clip, sound = _empty(BATCH, 16, 160, 160, 3, dtype=torch.uint8), _empty(BATCH, 1, 256, 128, dtype=WIDE)
    tokens, few = _empty(BATCH, 400, dtype=INDEX), _empty(BATCH, 64, dtype=INDEX)
    gather_patches.gather_patches(clip, tokens, [2, 16, 16], [0.5] * 3, [0.2] * 3, dtype)
    for source, index, patch, numbers in ((clip, tokens, [2, 16, 16], 1536), (sound, few, [16, 16], 256)):
        pred, scored = _empty(*index.shape, numbers, dtype=dtype), _empty(*index.shape, dtype=torch.bool)
        masked_patch_loss.masked_patch_loss(pred, source, index, scored, patch)
        grad = _empty(*index.shape, dtype=WIDE)
        masked_patch_loss.masked_patch_loss_backward(grad, pred, source, index, scored, patch)
