"""Kernels for audio-visual masked autoencoders: tensors in, tensors out, nothing of the model.

Every op has one public function here and several implementations behind it; :func:`use` chooses between them and
:func:`explain` says what runs and why the others do not. A ValueError names an argument of the wrong shape, dtype or device.
"""

from avfmae_kernels.adamw import adamw, from_compact_moments, gradient_norm, matmul_adamw, to_compact_moments
from avfmae_kernels.add_layer_norm import add_layer_norm, join_add_layer_norm, split_add_layer_norm
from avfmae_kernels.arguments import fits_a_tile
from avfmae_kernels.assemble_tokens import assemble_tokens
from avfmae_kernels.column_sum import column_sum
from avfmae_kernels.crop_clips import crop_clips
from avfmae_kernels.cross_attention import cross_attention
from avfmae_kernels.dispatch import chosen, explain, use, uses_reference
from avfmae_kernels.gated_sum import gated_sum
from avfmae_kernels.gather_patches import gather_patches
from avfmae_kernels.linear import (
    compute_dtype,
    cross_attention_linear,
    intercept_weight_grads,
    linear,
    mlp,
    norm_linear,
    region_attention_linear,
)  # fmt: skip
from avfmae_kernels.masked_patch_loss import masked_patch_loss
from avfmae_kernels.matmul import matmul_bf16
from avfmae_kernels.region_attention import region_attention
from avfmae_kernels.sample_masks import choose_tokens, random_bits

__all__ = [
    "adamw", "add_layer_norm", "assemble_tokens", "choose_tokens", "chosen", "column_sum", "compute_dtype", "crop_clips",
    "cross_attention", "cross_attention_linear", "explain", "fits_a_tile", "from_compact_moments", "gated_sum", "gather_patches",
    "gradient_norm", "intercept_weight_grads", "join_add_layer_norm", "linear", "masked_patch_loss",
    "matmul_adamw", "matmul_bf16", "mlp", "norm_linear", "random_bits", "region_attention", "region_attention_linear",
    "split_add_layer_norm", "to_compact_moments", "use", "uses_reference",
]  # fmt: skip
