"""The matrix products of linear layers, by the fastest implementation at hand.

On a GPU they stay with cuBLAS. On a CPU they are oneDNN's in float32, where PyTorch calls MKL, which keeps to AVX2 on processors
that are not Intel's: on an AMD EPYC with AVX-512 oneDNN's float32 products are 1.5 to 2.3 times as fast, and equal to them on an
Intel one. In bfloat16 they are :func:`matmul_bf16`, which reads float32 weights as they are: where it runs, nobody keeps bfloat16
copies. ``linear``, ``to_input`` and ``to_weight`` are called inside autograd Functions only: none has a gradient of its own.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from avfmae_kernels import processor
from avfmae_kernels.arguments import check_shape
from avfmae_kernels.device import kind
from avfmae_kernels.dispatch import AUTOMATIC, call, register
from avfmae_kernels.matmul import reference

register(
    "matmul_bf16", "(Tensor a, Tensor b, Tensor? bias, ScalarType dtype) -> Tensor", reference.matmul_bf16,
    out=True, cpu_levels=("avx512_bf16",),
)  # fmt: skip


def matmul_bf16(a: Tensor, b: Tensor, bias: Tensor | None = None, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """a·b + bias, with a and b rounded to bfloat16 and sums in float32.

    float32 factors are rounded while they are packed, so that a layer needs no copy of its weights. Floor: operations. Measured
    (two cores of an AMD EPYC with AVX512-BF16, weights not in cache) against oneDNN's product of bfloat16 weights: 1.0 to 1.2
    times as fast with 96 rows and more, 1.2 to 1.6 times with 32. With AMX oneDNN is several times as fast.

    Args:
        a: (M, K). b: (K, N). Each float32 or bfloat16, and contiguous in one of its dimensions or the other.
        bias: (N), float32, bfloat16 or float16. dtype: of the answer, float32 or bfloat16.

    Returns:
        (M, N).
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
        raise ValueError(f"a, b: got {tuple(a.shape)} and {tuple(b.shape)}, expected (M, K) and (K, N)")
    if bias is not None:
        check_shape("bias", bias, b.shape[1:])
    if dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"dtype: got {dtype}, expected float32 or bfloat16")
    for name, factor in (("a", a), ("b", b)):
        if factor.dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(f"{name}: got {factor.dtype}, expected float32 or bfloat16")
    a, b = (x if 1 in x.stride() else x.contiguous() for x in (a, b))
    return call("matmul_bf16", a.device, a, b, None if bias is None else bias.contiguous(), dtype)


ONEDNN = torch.backends.mkldnn.is_available() and processor.has("avx512") and hasattr(torch.ops.mkldnn, "_linear_pointwise")
BF16 = AUTOMATIC["matmul_bf16", "cpu"][0] == "cpp"


def rounds(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether products in ``dtype`` round float32 weights themselves: not in a compiled graph, which cannot update weights."""
    return BF16 and dtype is torch.bfloat16 and kind(device) == "cpu" and not torch.compiler.is_compiling()


def has_faster(x: Tensor, dtype: torch.dtype) -> bool:
    """Whether products of ``x`` in ``dtype`` go another way here than PyTorch's."""
    return rounds(x.device, dtype) or (dtype == torch.float32 and _onednn(x))


def _onednn(x: Tensor) -> bool:
    # torch.compile knows the op, but cannot lower it where weights change
    return ONEDNN and kind(x.device) == "cpu" and x.numel() > 0 and not torch.compiler.is_compiling()


def rows(x: Tensor) -> Tensor:
    """(..., C) -> (rows, C)."""
    return x.reshape(-1, x.shape[-1])


def operand(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A weight as products in ``dtype`` read it."""
    return weight if rounds(weight.device, dtype) else weight.to(dtype)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (..., I), weight (O, I) -> (..., O) in the dtype of x."""
    if rounds(x.device, x.dtype):
        return torch.ops.avfmae.matmul_bf16(rows(x), weight.mT, bias, x.dtype).view(*x.shape[:-1], -1)
    bias = None if bias is None else bias.to(x.dtype)
    # PyTorch's own bfloat16 product begins with a copy of the bias into every row
    if has_faster(x, x.dtype) or (bias is not None and x.dtype == torch.bfloat16 and _onednn(x)):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def to_input(grad: Tensor, weight: Tensor) -> Tensor:
    """The gradient to a linear layer's input: grad (..., O), weight (O, I) -> (..., I) in the dtype of grad."""
    return linear(grad, weight.mT, None)


def to_weight(grad: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """The gradient to a linear layer's weight: grad (rows, O), x (rows, I) -> (O, I) in ``dtype``."""
    if rounds(grad.device, grad.dtype):
        return torch.ops.avfmae.matmul_bf16(grad.mT, x, None, dtype)
    return linear(grad.mT, x.mT, None).to(dtype)
