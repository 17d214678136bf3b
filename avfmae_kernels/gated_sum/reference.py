"""gated_sum in float32 PyTorch (float64 stays): oracle, fallback, documentation."""

from torch import Tensor

from avfmae_kernels.arguments import at_least_float32


def gated_sum(gate_a: Tensor, a: Tensor, gate_b: Tensor, b: Tensor) -> Tensor:
    wa, wb = at_least_float32(gate_a).sigmoid(), at_least_float32(gate_b).sigmoid()
    return (wa * a + wb * b).to(a.dtype)


def gated_sum_backward(grad: Tensor, gate_a: Tensor, a: Tensor, gate_b: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    wa, wb = at_least_float32(gate_a).sigmoid(), at_least_float32(gate_b).sigmoid()
    grads = grad * a * wa * (1 - wa), grad * wa, grad * b * wb * (1 - wb), grad * wb
    return tuple(g.to(x.dtype) for g, x in zip(grads, (gate_a, a, gate_b, b), strict=True))
