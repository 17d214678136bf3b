"""Attention of one sequence to another where one of them is short: few keys, or few queries."""

from torch import Tensor

from avfmae_kernels.arguments import TILE, check_attention
from avfmae_kernels.cross_attention import reference
from avfmae_kernels.dispatch import call, register, register_backward_op

TRITON = "avfmae_kernels.cross_attention.triton"
register("cross_attention", "(Tensor q, Tensor kv, int heads) -> Tensor", reference.cross_attention, triton=TRITON, out=True)
register(
    "cross_attention_backward", "(Tensor grad, Tensor q, Tensor kv, int heads, bool recompute) -> (Tensor, Tensor, Tensor)",
    reference.cross_attention_backward, triton=TRITON, out=True,
)  # fmt: skip
register_backward_op("cross_attention", 2, False)


def cross_attention(q: Tensor, kv: Tensor, num_heads: int) -> Tensor:
    r"""Attention of B sequences to B others (AVF-MAE++ stages III and IV, eqs. 6, 7; the fusion's cross branches).

    With :math:`k, v` the halves of a row of ``kv`` and :math:`D` the head size, for each head

    .. math:: out = \mathrm{softmax}(q k^\top / \sqrt D)\, v.

    Floor: bytes. Forward reads C numbers a query and 2C a key, and writes C a query; backward reads q, kv and the gradient and
    writes as much as q and kv are, as the probabilities come from q and k once more and nothing but ``q`` and ``kv`` is kept. The
    shorter side stays in registers while the longer one streams by once (few queries: twice, the second time from cache).
    Measured (two cores of an AMD EPYC with AVX-512, float32, batch 8, ``avfmae bench kernels``): at 80×8 the C++ kernel is 2.1
    times as fast as the reference forward and 3 times backward, at 10 % of the rate of a copy, as a CPU is bound by the products.
    No GPU yet.

    Args:
        q: (B, Nq, C) float32, bfloat16 or float16. kv: (B, Nk, 2C), same dtype and device. In both the columns lie side by
            side; rows and sequences may lie anywhere, so that slices of the regions' buffer are read in place. On a GPU Nq or
            Nk is at most 128 (long attention to long sequences belongs to ``scaled_dot_product_attention``).
        num_heads: divides C; the head size is at most 128.

    Returns:
        (B, Nq, C), contiguous, in the dtype of ``q``.

    Raises:
        ValueError: an argument has the wrong shape, dtype or device.
    """
    if q.ndim != 3 or not q.shape[0] or not q.shape[1]:
        raise ValueError(f"q: got {tuple(q.shape)}, expected (B, Nq, C) with at least one sequence and one query")
    if kv.ndim != 3 or kv.shape[0] != q.shape[0] or kv.shape[2] != 2 * q.shape[2] or kv.shape[1] < 1:
        raise ValueError(
            f"kv: got {tuple(kv.shape)}, expected ({q.shape[0]}, Nk, {2 * q.shape[2]}) with at least one key, for q "
            f"{tuple(q.shape)}"
        )
    if q.is_cuda and min(q.shape[1], kv.shape[1]) > TILE:
        raise ValueError(
            f"q, kv: got {q.shape[1]} queries and {kv.shape[1]} keys, expected at most {TILE} of one of them on a GPU"
        )
    check_attention(num_heads, q.shape[2], q=q, kv=kv)
    return call("cross_attention", q.device, q, kv, num_heads)


def cross_attention_backward(
    grad: Tensor, q: Tensor, kv: Tensor, num_heads: int, recompute: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to ``q`` and ``kv``; with ``recompute`` also the forward's output (else an empty tensor)."""
    return call("cross_attention_backward", q.device, grad.contiguous(), q, kv, num_heads, recompute)
