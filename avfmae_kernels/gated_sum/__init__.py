"""The gate of a DiER unit: two branches weighed by learned gates, in one pass."""

from torch import Tensor

from avfmae_kernels.arguments import check_devices, check_floats, check_shape
from avfmae_kernels.dispatch import call, register, register_backward_op
from avfmae_kernels.gated_sum import reference

ARGUMENTS, RESULTS = "Tensor gate_a, Tensor a, Tensor gate_b, Tensor b", "(Tensor, Tensor, Tensor, Tensor)"
TRITON = "avfmae_kernels.gated_sum.triton"
register("gated_sum", f"({ARGUMENTS}) -> Tensor", reference.gated_sum, triton=TRITON)
register("gated_sum_backward", f"(Tensor grad, {ARGUMENTS}) -> {RESULTS}", reference.gated_sum_backward, triton=TRITON)
register_backward_op("gated_sum", 4)


def gated_sum(gate_a: Tensor, a: Tensor, gate_b: Tensor, b: Tensor) -> Tensor:
    r"""Sum of two branches, each number weighed by its gate (AVF-MAE++ eq. 9).

    .. math:: out = \sigma(gate_a) \odot a + \sigma(gate_b) \odot b.

    Floor: bytes. Forward reads four numbers for each that it writes; backward reads five and writes four.

    Args:
        gate_a, gate_b: (..., C) float32, bfloat16 or float16, before the sigmoid.
        a, b: (..., C), of a common dtype, which may differ from the gates'. In all four the last dimension is dense.

    Returns:
        (..., C) in the dtype of ``a``.
    """
    if a.ndim < 1 or not a.numel():
        raise ValueError(f"a: got {tuple(a.shape)}, expected (..., C) with at least one number")
    for name, x in (("gate_a", gate_a), ("gate_b", gate_b), ("b", b)):
        check_shape(name, x, a.shape, like="a")
    check_devices(a=a, gate_a=gate_a, gate_b=gate_b, b=b)
    check_floats(gate_a=gate_a, gate_b=gate_b)
    check_floats(a=a, b=b)
    rows = [x.reshape(-1, a.shape[-1]) for x in (gate_a, a, gate_b, b)]
    return call("gated_sum", a.device, *rows).view(a.shape)
