"""The exact GELU's gradient, its sums, and the recomputed output, in one pass. (Forward is one pass already, torch's own.)"""

import torch
from torch import Tensor

from avfmae_kernels.arguments import FLOATS, check_floats, check_shape
from avfmae_kernels.dispatch import call, register
from avfmae_kernels.gelu_backward import reference

register(
    "gelu_backward", "(Tensor grad, Tensor x, ScalarType dtype) -> (Tensor, Tensor, Tensor)", reference.gelu_backward,
    triton="avfmae_kernels.gelu_backward.triton", out=True,
)  # fmt: skip


def gelu_backward(grad: Tensor, x: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    r"""Gaussian error linear unit (Hendrycks and Gimpel, 2016), backward.

    .. math:: grad_x = grad \odot (\Phi(x) + x\,\varphi(x)), \qquad out = x\,\Phi(x),

    with the normal distribution :math:`\Phi` and its density :math:`\varphi`. Floor: bytes, two numbers read and two written. The
    CPU's distribution is a rational approximation, off by at most 7.5e-8 (Abramowitz and Stegun, 7.1.26), which shares its
    exponential with the density.

    Args:
        grad, x: (..., C) float32, bfloat16 or float16, of one shape.
        dtype: of the sums: float32, bfloat16 or float16; they are added up in float32.

    Returns:
        The gradient to ``x``; GELU(x); and the gradient's sums over rows (C): the gradient to the bias of the linear layer
        before the GELU, which is not worth a pass of its own.
    """
    if not x.numel() or not x.ndim:
        raise ValueError(f"x: got {tuple(x.shape)}, expected at least one dimension and one number")
    check_shape("grad", grad, x.shape, like="x")
    x, grad = x.contiguous(), grad.contiguous()
    check_floats(x=x, grad=grad)
    if dtype not in FLOATS:
        raise ValueError(f"dtype: got {dtype}, expected torch.float32, torch.bfloat16 or torch.float16")
    return call("gelu_backward", x.device, grad, x, dtype)
