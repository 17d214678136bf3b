"""Every op's schema and fake (meta) function, on one screen.

An op ``avfmae::<name>`` has its compiled kernels (C++ for CPU, CUDA) registered under it by ``avfmae_kernels._C``;
``avfmae::<name>_triton`` is its Triton twin. Both share the schema and the fake, so that importing, tracing and the
documentation work with no compiled module at all.
"""

import torch

SCHEMAS = {
    "gather_patches": "(Tensor video, Tensor index, int[] patch, float[] mean, float[] std, ScalarType dtype) -> Tensor",
    "masked_patch_loss": "(Tensor pred, Tensor source, Tensor index, Tensor scored, int[] patch) -> Tensor",
    "masked_patch_loss_backward": (
        "(Tensor grad, Tensor pred, Tensor source, Tensor index, Tensor scored, int[] patch) -> Tensor"
    ),
}


def gather_patches(video, index, patch, mean, std, dtype):
    pt, ph, pw = patch
    return video.new_empty((*index.shape, 3 * pt * ph * pw), dtype=dtype)


def masked_patch_loss(pred, source, index, scored, patch):
    return pred.new_empty(index.shape, dtype=torch.float32)


def masked_patch_loss_backward(grad, pred, source, index, scored, patch):
    return torch.empty_like(pred)


library = torch.library.Library("avfmae", "DEF")
for _name, _schema in SCHEMAS.items():
    for _op in (_name, f"{_name}_triton"):
        library.define(_op + _schema, tags=(torch.Tag.pt2_compliant_tag,))
        torch.library.register_fake(f"avfmae::{_op}", globals()[_name], lib=library)
