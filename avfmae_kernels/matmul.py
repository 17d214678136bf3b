"""The three matrix products of a linear layer, by the fastest library at hand.

They stay with the libraries: cuBLAS on a GPU; on a CPU oneDNN, which PyTorch itself uses for bfloat16 but not for float32. There it calls
MKL, which keeps to AVX2 on processors that are not Intel's: on an AMD EPYC with AVX-512 oneDNN's float32 products are 1.5 to 2.3 times as
fast, and equal to them on an Intel one. Called inside autograd Functions only: oneDNN's op has no gradient of its own.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

ONEDNN = (
    torch.backends.mkldnn.is_available()
    and "AVX512" in torch.backends.cpu.get_cpu_capability()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)


def has_faster(x: Tensor) -> bool:
    """Whether a product of ``x`` goes another way here than PyTorch's."""
    return x.dtype == torch.float32 and _onednn(x)


def _onednn(x: Tensor) -> bool:
    # torch.compile knows the op, but cannot lower it where weights change
    return ONEDNN and x.device.type == "cpu" and x.numel() > 0 and not torch.compiler.is_compiling()


def rows(x: Tensor) -> Tensor:
    """(..., C) -> (rows, C)."""
    return x.reshape(-1, x.shape[-1])


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (..., I), weight (O, I) -> (..., O)."""
    # PyTorch's bfloat16 product begins with a copy of the bias into every row.
    if has_faster(x) or (bias is not None and x.dtype == torch.bfloat16 and _onednn(x)):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def to_input(grad: Tensor, weight: Tensor) -> Tensor:
    """The gradient to a linear layer's input: grad (..., O), weight (O, I) -> (..., I)."""
    return linear(grad, weight.mT, None) if has_faster(grad) else grad @ weight


def to_weight(grad: Tensor, x: Tensor) -> Tensor:
    """The gradient to a linear layer's weight: grad (..., O), x (..., I) -> (O, I)."""
    grad, x = rows(grad), rows(x)
    return linear(grad.mT, x.mT, None) if has_faster(grad) else grad.mT @ x
