"""gelu_backward in Triton: one pass over neighbouring numbers."""

import triton
import triton.language as tl
from torch import Tensor

from avfmae_kernels.triton_tools import launch, store

ROOT_HALF = tl.constexpr(0.7071067811865476)
DENSITY_AT_0 = tl.constexpr(0.3989422804014327)  # of the normal distribution


@triton.jit
def gelu_backward_kernel(grad, x, grad_x, out, numbers, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    v = tl.load(x + i, mask=i < numbers, other=0).to(tl.float32)
    g = tl.load(grad + i, mask=i < numbers, other=0).to(tl.float32)
    below = 0.5 * (1 + tl.erf(v * ROOT_HALF))
    store(grad_x + i, g * (below + v * DENSITY_AT_0 * tl.exp(-0.5 * v * v)), i < numbers)
    store(out + i, v * below, i < numbers)


CONFIGURATIONS = [{"BLOCK": 1024, "num_warps": 4}, {"BLOCK": 2048, "num_warps": 4}, {"BLOCK": 2048, "num_warps": 8}]


def gelu_backward(grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    grad_x, out = x.new_empty(x.shape), x.new_empty(x.shape)
    grid = lambda meta: (triton.cdiv(x.numel(), meta["BLOCK"]),)  # noqa: E731
    launch(gelu_backward_kernel, grid, CONFIGURATIONS, grad, x, grad_x, out, x.numel())
    return grad_x, out
