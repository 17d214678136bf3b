"""Every op's schema and fake (meta) function, on one screen.

An op ``avfmae::<name>`` has its compiled kernels (C++ for CPU, CUDA) registered under it by ``avfmae_kernels._C``;
``avfmae::<name>_triton`` is its Triton twin. Both share the schema and the fake, so that importing, tracing and the
documentation work with no compiled module at all.
"""

import torch

SCHEMAS = {
    "gather_patches": (
        "(Tensor video, Tensor index, int[] patch, float[] mean, float[] std, ScalarType dtype, Tensor? "
        "boxes=None, int[] size=[]) -> Tensor"
    ),
    "crop_clips": "(Tensor video, Tensor boxes, int[] size, bool bicubic) -> Tensor",
    "masked_patch_loss": (
        "(Tensor pred, Tensor source, Tensor index, Tensor scored, int[] patch, Tensor? boxes=None, int[] size=[]) -> Tensor"
    ),
    "masked_patch_loss_backward": (
        "(Tensor grad, Tensor pred, Tensor source, Tensor index, Tensor scored, int[] patch, Tensor? boxes=None, int[] "
        "size=[]) -> Tensor"
    ),
    "region_attention": "(Tensor qkv, int heads) -> Tensor",
    "region_attention_backward": "(Tensor grad, Tensor qkv, int heads, bool again) -> (Tensor, Tensor)",
    "cross_attention": "(Tensor q, Tensor kv, int heads) -> Tensor",
    "cross_attention_backward": "(Tensor grad, Tensor q, Tensor kv, int heads, bool again) -> (Tensor, Tensor, Tensor)",
    "assemble_tokens": (
        "(Tensor visible, Tensor? mask_token, Tensor positions, Tensor visible_index, Tensor? mask_index, ScalarType "
        "dtype) -> Tensor"
    ),
    "gated_sum": "(Tensor gate_a, Tensor a, Tensor gate_b, Tensor b) -> Tensor",
    "gated_sum_backward": ("(Tensor grad, Tensor gate_a, Tensor a, Tensor gate_b, Tensor b) -> (Tensor, Tensor, Tensor, Tensor)"),
    "gelu_backward": "(Tensor grad, Tensor x) -> (Tensor, Tensor)",
    "matmul_bf16": "(Tensor a, Tensor b, Tensor? bias, ScalarType dtype) -> Tensor",
    "matmul_adamw": (
        "(Tensor a, Tensor b, Tensor(a!) param, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, Tensor(d!) step, Tensor lr, "
        "float beta1, float beta2, "
        "float eps, float weight_decay, Tensor(e!) squares) -> Tensor"
    ),
    "gradient_norm": "(Tensor[] gradients) -> Tensor",
    "adamw": (
        "(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, Tensor(d!)[] steps, "
        "Tensor(e!)[] copies, "
        "Tensor lr, float beta1, float beta2, float eps, float weight_decay, Tensor divisor, Tensor skip, Tensor(f!)? "
        "squares=None) -> ()"
    ),
    # These write where they are told, so that the rows of one buffer can be read and written by slots.
    "add_layer_norm": (
        "(Tensor x, Tensor? residual, Tensor weight, Tensor bias, float eps, "
        "Tensor(a!)? sum, Tensor(b!) normalised, Tensor(c!) stats) -> ()"
    ),
    "add_layer_norm_backward": (
        "(Tensor? grad_sum, Tensor? grad_normalised, Tensor sum, Tensor stats, Tensor weight, Tensor bias, "
        "Tensor(a!) grad_x, Tensor(b!)? grad_residual, Tensor(c!)? normalised, Tensor(d!) parts) -> ()"
    ),
}

# CPU ops that have a second overload, "out", which writes the results to tensors that are given.
WRITING = {
    "matmul_bf16",
    "matmul_adamw",
    "region_attention",
    "region_attention_backward",
    "cross_attention",
    "cross_attention_backward",
    "gelu_backward",
}
WITHOUT_TRITON = {"matmul_bf16", "matmul_adamw", "gradient_norm", "adamw", "crop_clips"}  # on a GPU torch's own kernels do it


def gather_patches(video, index, patch, mean, std, dtype, boxes=None, size=()):
    pt, ph, pw = patch
    return video.new_empty((*index.shape, 3 * pt * ph * pw), dtype=dtype)


def crop_clips(video, boxes, size, bicubic):
    return video.new_empty((len(boxes), video.shape[1], *size, 3))


def masked_patch_loss(pred, source, index, scored, patch, boxes=None, size=()):
    return pred.new_empty(index.shape, dtype=torch.float32)


def masked_patch_loss_backward(grad, pred, source, index, scored, patch, boxes=None, size=()):
    return torch.empty_like(pred)


def region_attention(qkv, heads):
    return qkv.new_empty((*qkv.shape[:2], qkv.shape[2] // 3))


def region_attention_backward(grad, qkv, heads, again):
    return qkv.new_empty(qkv.shape), qkv.new_empty(grad.shape if again else (0,))


def cross_attention(q, kv, heads):
    return q.new_empty(q.shape)


def cross_attention_backward(grad, q, kv, heads, again):
    return q.new_empty(q.shape), kv.new_empty(kv.shape), q.new_empty(q.shape if again else (0,))


def assemble_tokens(visible, mask_token, positions, visible_index, mask_index, dtype):
    tokens = visible.shape[1] + (0 if mask_index is None else mask_index.shape[1])
    return visible.new_empty((visible.shape[0], tokens, visible.shape[2]), dtype=dtype)


def gated_sum(gate_a, a, gate_b, b):
    return a.new_empty(a.shape)


def gated_sum_backward(grad, gate_a, a, gate_b, b):
    return tuple(x.new_empty(x.shape) for x in (gate_a, a, gate_b, b))


def gelu_backward(grad, x):
    return x.new_empty(x.shape), x.new_empty(x.shape)


def add_layer_norm(x, residual, weight, bias, eps, sum, normalised, stats):
    pass


def add_layer_norm_backward(grad_sum, grad_normalised, sum, stats, weight, bias, grad_x, grad_residual, normalised, parts):
    pass


def matmul_bf16(a, b, bias, dtype):
    return a.new_empty((a.shape[0], b.shape[1]), dtype=dtype)


def matmul_adamw(a, b, param, exp_avg, exp_avg_sq, step, lr, beta1, beta2, eps, weight_decay, squares):
    return a.new_empty(len(a), dtype=torch.float32)


def gradient_norm(gradients):
    return gradients[0].new_empty((), dtype=torch.float32)


def adamw(params, grads, exp_avgs, exp_avg_sqs, steps, copies, lr, beta1, beta2, eps, weight_decay, divisor, skip, squares=None):
    pass


library = torch.library.Library("avfmae", "DEF")
for _name, _schema in SCHEMAS.items():
    for _op in (_name,) if _name in WITHOUT_TRITON else (_name, f"{_name}_triton"):
        library.define(_op + _schema, tags=(torch.Tag.pt2_compliant_tag,))
        torch.library.register_fake(f"avfmae::{_op}", globals()[_name], lib=library)
for _name in WRITING:
    _arguments, _, _results = SCHEMAS[_name].partition(") -> ")
    _outs = "".join(f", Tensor({letter}!) out_{letter}" for letter, _ in zip("xyz", _results.split(","), strict=False))
    library.define(f"{_name}.out{_arguments}{_outs}) -> ()")
