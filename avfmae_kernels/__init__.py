"""Kernels for audio-visual masked autoencoders: tensors in, tensors out, nothing of the model.

Every op has one public function here and several implementations behind it; :func:`use` chooses between them and
:func:`explain` says what runs and why the others do not.
"""

from avfmae_kernels.cross_attention import cross_attention
from avfmae_kernels.dispatch import explain, use
from avfmae_kernels.gather_patches import gather_patches
from avfmae_kernels.masked_patch_loss import masked_patch_loss
from avfmae_kernels.region_attention import region_attention
from avfmae_kernels.sample_masks import choose_tokens, random_bits

__all__ = [
    "choose_tokens",
    "cross_attention",
    "explain",
    "gather_patches",
    "masked_patch_loss",
    "random_bits",
    "region_attention",
    "use",
]
