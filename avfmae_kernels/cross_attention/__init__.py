"""Attention of one sequence to another where one of them is short: few keys, or few queries."""

from torch import Tensor

from avfmae_kernels.arguments import TILE, check_attention, check_shape
from avfmae_kernels.cross_attention import reference
from avfmae_kernels.device import kind
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

    Args:
        q: (B, Nq, C) float32, bfloat16 or float16. kv: (B, Nk, 2C), same dtype and device. In both the columns lie side by
            side; rows and sequences may lie anywhere, so that slices of the regions' buffer are read in place. On a GPU Nq or
            Nk is at most 128 (long attention to long sequences belongs to ``scaled_dot_product_attention``).
        num_heads: divides C; the head size is at most 128.

    Returns:
        (B, Nq, C), contiguous, in the dtype of ``q``.
    """
    if q.ndim != 3 or not q.shape[0] or not q.shape[1]:
        raise ValueError(f"q: got {tuple(q.shape)}, expected (B, Nq, C) with at least one sequence and one query")
    check_shape("kv", kv, (len(q), "Nk", 2 * q.shape[2]))
    if not kv.shape[1]:
        raise ValueError(f"kv: got {tuple(kv.shape)}, expected at least one key")
    if kind(q.device) == "cuda" and min(q.shape[1], kv.shape[1]) > TILE:
        raise ValueError(f"q, kv: got {q.shape[1]} queries and {kv.shape[1]} keys, expected at most {TILE} of one on a GPU")
    check_attention(num_heads, q.shape[2], q=q, kv=kv)
    return call("cross_attention", q.device, q, kv, num_heads)


def cross_attention_backward(grad: Tensor, q: Tensor, kv: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to ``q`` and ``kv``, and the forward's output, recomputed."""
    return call("cross_attention_backward", q.device, grad.contiguous(), q, kv, num_heads, True)
