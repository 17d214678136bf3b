"""A product of matrices in bfloat16 on the CPU, of factors that may be float32."""

import torch
from torch import Tensor

from avfmae_kernels.dispatch import call, register
from avfmae_kernels.matmul_bf16 import reference


def _fake(a, b, bias, dtype):
    return a.new_empty((a.shape[0], b.shape[1]), dtype=dtype)


register(
    "matmul_bf16", "(Tensor a, Tensor b, Tensor? bias, ScalarType dtype) -> Tensor", _fake, reference.matmul_bf16,
    triton=False, out=True, cpu_levels=("avx512_bf16",),  # with AMX oneDNN's products are several times as fast
)  # fmt: skip


def matmul_bf16(a: Tensor, b: Tensor, bias: Tensor | None = None, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """a·b + bias, with a and b rounded to bfloat16 and sums in float32.

    float32 factors are rounded while they are packed, so that a layer needs no copy of its weights. Floor: operations. Measured
    (two cores of an AMD EPYC with AVX512-BF16, weights not in cache) against oneDNN's product of bfloat16 weights: 1.0 to 1.2
    times as fast with 96 rows and more, 1.2 to 1.6 times with 32. Of processors with AMX oneDNN's products are the faster ones;
    :mod:`avfmae_kernels.matmul` chooses.

    Args:
        a: (M, K). b: (K, N). Each float32 or bfloat16, and contiguous in one of its dimensions or the other.
        bias: (N), float32, bfloat16 or float16. dtype: of the answer, float32 or bfloat16.

    Returns:
        (M, N).

    Raises:
        ValueError: an argument has the wrong shape or dtype.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
        raise ValueError(f"a, b: got {tuple(a.shape)} and {tuple(b.shape)}, expected (M, K) and (K, N)")
    if bias is not None and bias.shape != b.shape[1:]:
        raise ValueError(f"bias: got {tuple(bias.shape)}, expected ({b.shape[1]},)")
    if dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"dtype: got {dtype}, expected float32 or bfloat16")
    for name, factor in (("a", a), ("b", b)):
        if factor.dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(f"{name}: got {factor.dtype}, expected float32 or bfloat16")
    a, b = (x if 1 in x.stride() else x.contiguous() for x in (a, b))
    return call("matmul_bf16", a.device, a, b, None if bias is None else bias.contiguous(), dtype)
