"""The ops at the shapes of Base pre-training: what runs, and how many bytes it must move at least."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

import avfmae_kernels as K
from avfmae_kernels import dispatch
from avfmae_kernels.add_layer_norm.core import backward_into, forward_into, norm_grads, parts_of
from avfmae_kernels.crop_clips import as_read
from avfmae_kernels.gelu_backward import gelu_backward as gelu_gradient

C, HEADS = 512, 8


@dataclass
class Run:
    """One direction of one op: a call without autograd, the bytes that it cannot but read and write, and its operations."""

    call: Callable
    bytes: int
    flops: int = 0


def size(*tensors: Tensor) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def backward(op: str, *args):
    """The gradient op of the implementation in use."""
    return dispatch.call(f"{op}_backward", args[0].device, *args)


def copy(batch, dtype, device):
    x = torch.randn(batch, 88, 3 * C, dtype=dtype, device=device)
    y = torch.empty_like(x)
    return {"forward": Run(lambda: y.copy_(x), 2 * size(x))}


def region(S, regions=8):
    def case(batch, dtype, device):
        qkv = torch.randn(batch * regions, S, 3 * C, dtype=dtype, device=device)
        grad = torch.randn(batch * regions, S, C, dtype=dtype, device=device)
        products = 4 * batch * regions * S * S * C
        return {
            "forward": Run(lambda: K.region_attention(qkv, HEADS), size(qkv, grad), products),
            "backward": Run(
                lambda: backward("region_attention", grad, qkv, HEADS, False), size(qkv, grad, qkv), products * 5 // 2
            ),
        }

    return case


def sdpa(S, regions=8):
    """torch's attention at the same shape, for comparison."""

    def case(batch, dtype, device):
        qkv = torch.randn(batch * regions, S, 3 * C, dtype=dtype, device=device)

        def run():
            q, k, v = rearrange(qkv, "n s (three h d) -> three n h s d", three=3, h=HEADS)
            return rearrange(F.scaled_dot_product_attention(q, k, v), "n h s d -> n s (h d)")

        return {"forward": Run(run, size(qkv) * 4 // 3)}

    return case


def cross(queries, keys):
    def case(batch, dtype, device):
        q, grad = (torch.randn(batch, queries, C, dtype=dtype, device=device) for _ in range(2))
        kv = torch.randn(batch, keys, 2 * C, dtype=dtype, device=device)
        products = 4 * batch * queries * keys * C
        return {
            "forward": Run(lambda: K.cross_attention(q, kv, HEADS), size(q, kv, grad), products),
            "backward": Run(
                lambda: backward("cross_attention", grad, q, kv, HEADS, False), 2 * size(q, kv) + size(grad), products * 5 // 2
            ),
        }

    return case


def add_layer_norm(batch, dtype, device):
    x, residual = (torch.randn(batch * 8, 11, C, dtype=dtype, device=device) for _ in range(2))
    weight, bias = torch.ones(C, device=device), torch.zeros(C, device=device)
    total, normalised, grad_x = (torch.empty_like(x) for _ in range(3))
    implementation = dispatch.choose("add_layer_norm", x.device)
    forward = Run(lambda: K.add_layer_norm(x, residual, weight, bias), 4 * size(x), 9 * x.numel())
    if implementation == "reference":
        leaves = [t.detach().requires_grad_() for t in (x, residual, weight, bias)]
        with torch.enable_grad():
            outputs = K.add_layer_norm(leaves[0], leaves[1], leaves[2], leaves[3])
        run = lambda: torch.autograd.grad(outputs, leaves, (x, residual), retain_graph=True)  # noqa: E731
        return {"forward": forward, "backward": Run(run, 4 * size(x), 12 * x.numel())}
    stats = forward_into(implementation, x, residual, weight, bias, 1e-6, total, normalised)

    def run():
        all_parts, parts = parts_of(implementation, weight, stats)
        backward_into(implementation, x, residual, total, stats, weight, bias, grad_x, None, None, parts)
        return norm_grads(all_parts, weight)

    return {"forward": forward, "backward": Run(run, 4 * size(x), 12 * x.numel())}


def gated_sum(batch, dtype, device):
    x = [torch.randn(batch * 80, C, dtype=dtype, device=device) for _ in range(5)]
    return {
        "forward": Run(lambda: K.gated_sum(*x[:4]), 5 * size(x[0]), 9 * x[0].numel()),
        "backward": Run(lambda: backward("gated_sum", x[4], *x[:4]), 9 * size(x[0]), 16 * x[0].numel()),
    }


def gelu_backward(batch, dtype, device):
    x, grad = (torch.randn(batch * 88, 4 * C, dtype=dtype, device=device) for _ in range(2))
    return {"backward": Run(lambda: gelu_gradient(grad, x), 4 * size(x), 26 * x.numel())}


def column_sum(batch, dtype, device):
    """Of the gradient of an encoder block's feed-forward."""
    x = torch.randn(batch * 88, 4 * C, dtype=dtype, device=device)
    return {"forward": Run(lambda: K.column_sum(x, dtype), size(x), x.numel())}


def matmul_bf16(batch, dtype, device):
    """The second product of an encoder block's feed-forward, of float32 weights."""
    x, weight = torch.randn(batch * 88, 4 * C, dtype=dtype, device=device), torch.randn(C, 4 * C, device=device)
    answer = x.numel() // 4 * torch.finfo(torch.bfloat16).bits // 8
    return {"forward": Run(lambda: K.matmul_bf16(x, weight.mT), size(x, weight) + answer, 2 * len(x) * weight.numel())}


def assemble_tokens(batch, dtype, device):
    width = 384
    visible, mask, table = (torch.randn(*s, device=device, dtype=dtype) for s in ((batch, 80, width), (width,), (800, width)))
    seen, hidden = (torch.stack([torch.randperm(800)[:n] for _ in range(batch)]).to(device) for n in (80, 400))
    written = batch * 480 * width * visible.element_size()
    return {
        "forward": Run(
            lambda: K.assemble_tokens(visible, mask, table, seen, hidden), size(visible) + written, batch * 480 * width
        )
    }


def adamw(batch, dtype, device):
    """A tenth of Base's weights; as many clips as you like."""
    params, exp_avgs, squares = ([torch.zeros(2048, C, device=device) for _ in range(18)] for _ in range(3))
    grads = [torch.randn(2048, C, device=device).to(dtype) for _ in params]
    copies = [p.to(dtype) for p in params] if dtype != torch.float32 else []
    steps, one = [torch.zeros((), device=device) for _ in params], torch.ones((), device=device)
    run = lambda: K.adamw(params, grads, exp_avgs, squares, steps, copies, one * 1e-4, (0.9, 0.95), 1e-8, 0.05, one, one * 0)  # noqa: E731
    return {"forward": Run(run, 6 * size(*params) + size(*grads, *copies), 15 * sum(p.numel() for p in params))}


def matmul_adamw(batch, dtype, device):
    """The weight's gradient in the same feed-forward, and its update with compact moments."""
    grad, x = (torch.randn(batch * 88, n, dtype=dtype, device=device) for n in (C, 4 * C))
    kinds = (torch.float32, torch.int8, torch.bfloat16)
    weight, exp_avg, exp_avg_sq = (torch.zeros(C, 4 * C, device=device, dtype=t) for t in kinds)
    step, squares, lr = (torch.full((), x, device=device) for x in (0.0, 0.0, 1e-4))
    run = lambda: K.matmul_adamw(grad, x, weight, exp_avg, exp_avg_sq, step, lr, (0.9, 0.95), 1e-8, 0.05, squares)  # noqa: E731
    return {"backward": Run(run, size(grad, x) + 2 * size(weight, exp_avg, exp_avg_sq), (2 * len(x) + 15) * weight.numel())}


def clip(batch, device, boxed=False):
    """uint8 clips; and where they are stored larger what boxes show of them, as arguments."""
    side = 176 if boxed else 160
    video = torch.randint(0, 256, (batch, 16, side, side, 3), dtype=torch.uint8, device=device)
    boxes = torch.tensor([[5.5, 9.25, 168.0, 171.75]], device=device).repeat(batch, 1)
    return video, {"boxes": boxes, "size": (160, 160)} if boxed else {}


def tokens(batch, count, device):
    return torch.stack([torch.randperm(800)[:count] for _ in range(batch)]).to(device)


def gather_patches(boxed=False):
    def case(batch, dtype, device):
        (video, seen), index = clip(batch, device, boxed), tokens(batch, 80, device)
        bytes_ = index.numel() * 1536 * (1 + torch.empty(0, dtype=dtype).element_size())
        return {"forward": Run(lambda: K.gather_patches(video, index, dtype=dtype, **seen), bytes_, 2 * index.numel() * 1536)}

    return case


def patch_loss(boxed=False):
    def case(batch, dtype, device):
        (video, seen), index = clip(batch, device, boxed), tokens(batch, 400, device)
        pred = torch.randn(batch, 400, 1536, dtype=dtype, device=device)
        scored = torch.ones(batch, 400, dtype=torch.bool, device=device)
        grad = scored.float()

        def gradient():
            read, boxes = as_read("masked_patch_loss", video, seen.get("boxes"), (160, 160))
            return backward("masked_patch_loss", grad, pred, read, index, scored, [2, 16, 16], boxes, [160, 160])

        return {
            "forward": Run(
                lambda: K.masked_patch_loss(pred, video, index, grad, (2, 16, 16), **seen),
                size(pred) + pred.numel(),
                9 * pred.numel(),
            ),
            "backward": Run(gradient, 2 * size(pred) + pred.numel(), 9 * pred.numel()),
        }

    return case


def crop_clips(filter):
    def case(batch, dtype, device):
        if dtype != torch.float32:
            return {}  # levels are levels
        video, seen = clip(batch, device, boxed=True)
        return {"forward": Run(lambda: K.crop_clips(video, **seen, filter=filter), 2 * batch * 16 * 160 * 160 * 3)}

    return case


CASES = {  # case: (op, what makes it)
    "copy": (None, copy),
    "region_attention 8x11": ("region_attention", region(11)),
    "region_attention 8x4": ("region_attention", region(4)),
    "region_attention 8x101": ("region_attention", region(101)),
    "region_attention 8": ("region_attention", region(8, 1)),
    "region_attention units": ("region_attention", region(2, 80)),
    "sdpa 8x11": (None, sdpa(11)),
    "sdpa 8x4": (None, sdpa(4)),
    "cross_attention 80x8": ("cross_attention", cross(80, 8)),
    "cross_attention 24x8": ("cross_attention", cross(24, 8)),
    "cross_attention 8x80": ("cross_attention", cross(8, 80)),
    "cross_attention 8x24": ("cross_attention", cross(8, 24)),
    "add_layer_norm": ("add_layer_norm", add_layer_norm),
    "gated_sum": ("gated_sum", gated_sum),
    "gelu_backward": ("gelu_backward", gelu_backward),
    "column_sum": ("column_sum", column_sum),
    "adamw": ("adamw", adamw),
    "matmul_bf16": ("matmul_bf16", matmul_bf16),
    "matmul_adamw": ("matmul_adamw", matmul_adamw),
    "assemble_tokens": ("assemble_tokens", assemble_tokens),
    "gather_patches": ("gather_patches", gather_patches()),
    "gather_patches boxes": ("gather_patches", gather_patches(boxed=True)),
    "masked_patch_loss": ("masked_patch_loss", patch_loss()),
    "masked_patch_loss boxes": ("masked_patch_loss", patch_loss(boxed=True)),
    "crop_clips bilinear": ("crop_clips", crop_clips("bilinear")),
    "crop_clips bicubic": ("crop_clips", crop_clips("bicubic")),
}
