"""gated_sum in plain PyTorch: oracle, fallback, documentation."""

from torch import Tensor


def gated_sum(gate_a: Tensor, a: Tensor, gate_b: Tensor, b: Tensor) -> Tensor:
    return (gate_a.sigmoid() * a + gate_b.sigmoid() * b).to(a.dtype)


def gated_sum_backward(grad: Tensor, gate_a: Tensor, a: Tensor, gate_b: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    wa, wb = gate_a.sigmoid(), gate_b.sigmoid()
    slopes = grad * a * wa * (1 - wa), grad * wa, grad * b * wb * (1 - wb), grad * wb
    return tuple(slope.to(x.dtype) for slope, x in zip(slopes, (gate_a, a, gate_b, b), strict=True))
