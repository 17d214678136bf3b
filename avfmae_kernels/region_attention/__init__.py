"""Packed self-attention of many short sequences: a region's tokens, the region tokens of a clip, a token's units."""

from torch import Tensor

from avfmae_kernels.arguments import TILE, check_attention
from avfmae_kernels.device import kind
from avfmae_kernels.dispatch import call, register, register_backward_op
from avfmae_kernels.region_attention import reference

TRITON = "avfmae_kernels.region_attention.triton"
register("region_attention", "(Tensor qkv, int heads) -> Tensor", reference.region_attention, triton=TRITON, out=True)
register(
    "region_attention_backward", "(Tensor grad, Tensor qkv, int heads, bool recompute) -> (Tensor, Tensor)",
    reference.region_attention_backward, triton=TRITON, out=True,
)  # fmt: skip
register_backward_op("region_attention", 1, False)


def region_attention(qkv: Tensor, num_heads: int) -> Tensor:
    r"""Self-attention inside each of N sequences (AVF-MAE++ stages I and II, eqs. 4, 5; HAFE's unit attention).

    With :math:`q, k, v` the thirds of a row and :math:`D` the head size, for each head

    .. math:: out = \mathrm{softmax}(q k^\top / \sqrt D)\, v.

    Floor: bytes. Forward reads 3C numbers a token and writes C; backward reads 4C and writes 3C, as the probabilities
    come from q and k once more and nothing but ``qkv`` is kept. On a GPU whole sequences, several where they are short,
    share a tile of the tensor cores, so that the products stay below the time of the bytes.

    Args:
        qkv: (N, S, 3C) float32, bfloat16 or float16; the columns lie side by side, rows and sequences may lie anywhere, so
            that ``buffer[:, :, 0]`` is read in place. On a GPU S is at most 128; a CPU takes any length.
        num_heads: divides C; the head size is at most 128.

    Returns:
        (N, S, C), contiguous, in the dtype of ``qkv``.
    """
    if qkv.ndim != 3 or qkv.shape[2] % 3 or not len(qkv) or not qkv.shape[1]:
        raise ValueError(f"qkv: got {tuple(qkv.shape)}, expected (N, S, 3C) with N and S at least 1")
    if kind(qkv.device) == "cuda" and qkv.shape[1] > TILE:
        raise ValueError(f"qkv: got sequences of {qkv.shape[1]}, expected at most {TILE} on a GPU (else use torch's attention)")
    check_attention(num_heads, qkv.shape[2] // 3, qkv=qkv)
    return call("region_attention", qkv.device, qkv, num_heads)


def region_attention_backward(grad: Tensor, qkv: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
    """Gradient to ``qkv``, and the forward's output, recomputed."""
    return call("region_attention_backward", qkv.device, grad.contiguous(), qkv, num_heads, True)
