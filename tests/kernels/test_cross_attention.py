"""cross_attention: every implementation that can run here against float64, forward and gradients; its errors; its contract."""

import pytest
import torch
from backends import each_backend, each_opcheck, interpreted, registered, require, require_chip
from correctness import TOLERANCE, check, poisoned

import avfmae_kernels as K
from avfmae_kernels.cross_attention import cross_attention_backward, reference

pytestmark = pytest.mark.isa

SHAPES = {  # sequences, queries, keys, heads, head size
    "pre video III": (4, 80, 8, 8, 64),
    "pre audio III": (4, 24, 8, 8, 64),
    "fine video III": (2, 800, 8, 2, 64),
    "fine audio III": (2, 128, 8, 2, 64),
    "pre video IV": (4, 8, 80, 8, 64),
    "pre audio IV": (4, 8, 24, 8, 64),
    "fine video IV": (2, 8, 800, 2, 64),
    "fine audio IV": (2, 8, 128, 2, 64),
    "fusion": (2, 80, 24, 8, 64),
    "decoder": (1, 480, 80, 2, 80),
    "one of each": (1, 1, 1, 1, 64),
    "one query": (3, 1, 7, 2, 64),
    "one key": (3, 7, 1, 2, 64),
    "odd": (2, 101, 17, 3, 80),
    "odd, turned": (2, 5, 131, 3, 80),
    "as many": (2, 33, 33, 1, 16),
}


def inputs(B, Nq, Nk, heads, D):
    g = torch.Generator().manual_seed(Nq + Nk)
    C = heads * D
    return [torch.randn(B, Nq, C, generator=g, dtype=torch.float64), torch.randn(B, Nk, 2 * C, generator=g, dtype=torch.float64)]


def check_shape(implementation, shape, dtype, device="cpu"):
    if interpreted(implementation, device):
        sequences = 1 if max(shape[1:3]) > 400 else 2
        shape = (min(shape[0], sequences), *shape[1:3], min(shape[3], 2), shape[4])
    heads = shape[3]
    require_chip("cross_attention", implementation, device, *(x.to(dtype) for x in inputs(*shape)), heads)
    if shape[2] == 1:  # softmax over one key is 1: no gradient reaches the query
        q, kv = (x.to(device, dtype).requires_grad_() for x in inputs(*shape))
        with K.use(implementation), poisoned():
            out = K.cross_attention(q, kv, heads)
            out.sum().backward()
        rounded = 2**-21 if implementation == "triton" and dtype == torch.float32 else 0  # its products keep 22 bits of float32
        torch.testing.assert_close(out, kv[..., q.shape[-1] :].expand_as(q), rtol=rounded, atol=0)
        assert q.grad.abs().max() <= 1e-5
        return
    check(
        implementation,
        lambda q, kv: K.cross_attention(q, kv, heads),
        lambda q, kv: reference.cross_attention(q, kv, heads),
        inputs(*shape),
        dtype,
        device,
    )


@each_backend
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_against_float64(shape, dtype, implementation, device):
    require("cross_attention", implementation, device)
    check_shape(implementation, shape, dtype, device)


def check_strides(implementation, device="cpu"):
    """Slots of a buffer are read in place, and the answer is that of a copy; the output is recomputed with the gradients."""
    buffer = torch.randn(3, 4, 6, 2 * 32, device=device)
    for q, kv in (
        (buffer[:, :, 0, :32], buffer[:, 1]),
        (buffer[:, 2, :, 32:], buffer[:, :, 3]),
        (buffer[:, 2, :, 32:], buffer[:, :, 3, :].flip(1)),
    ):
        require_chip("cross_attention", implementation, device, q, kv, 2)
        grad = torch.randn(*q.shape, device=device)
        with K.use(implementation), poisoned():
            out = K.cross_attention(q, kv, 2)
            dq, dkv, output = cross_attention_backward(grad, q, kv, 2)
        want, (want_q, want_kv, _) = (
            reference.cross_attention(q, kv, 2),
            reference.cross_attention_backward(grad, q, kv, 2, False),
        )
        assert torch.allclose(out, want, atol=1e-5) and torch.allclose(output, want, atol=1e-5)
        assert torch.allclose(dq, want_q, atol=1e-5) and torch.allclose(dkv, want_kv, atol=1e-5)


@each_backend
def test_rows_may_lie_anywhere(implementation, device):
    require("cross_attention", implementation, device)
    check_strides(implementation, device)


@pytest.mark.parametrize("implementation", ["reference", "cpp"])
@pytest.mark.parametrize(
    ("q", "kv", "heads", "words"),
    [
        (torch.zeros(4, 8), torch.zeros(1, 4, 16), 1, "q: got (4, 8)"),
        (torch.zeros(0, 4, 8), torch.zeros(0, 4, 16), 1, "q: got (0, 4, 8)"),
        (torch.zeros(2, 4, 8), torch.zeros(3, 4, 16), 1, "kv: got (3, 4, 16), expected (2, Nk, 16)"),
        (torch.zeros(2, 4, 8), torch.zeros(2, 4, 8), 1, "kv: got (2, 4, 8), expected (2, Nk, 16)"),
        (torch.zeros(2, 4, 8), torch.zeros(2, 0, 16), 1, "kv: got (2, 0, 16)"),
        (torch.zeros(2, 4, 8), torch.zeros(2, 4, 16), 3, "num_heads: got 3"),
        (
            torch.zeros(2, 4, 8),
            torch.zeros(2, 4, 16, dtype=torch.bfloat16),
            1,
            "kv: got torch.bfloat16, expected torch.float32 like q",
        ),
        (torch.zeros(2, 4, 8), torch.zeros(2, 4, 16, device="meta"), 1, "kv: is on meta, expected cpu like q"),
        (torch.zeros(2, 8, 4).mT, torch.zeros(2, 4, 16), 1, "q: its last dimension has stride 4"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_wrong_arguments_are_named(q, kv, heads, words, implementation):
    require("cross_attention", implementation)
    with K.use(implementation), pytest.raises(ValueError) as caught:
        K.cross_attention(q, kv, heads)
    assert words in str(caught.value)


@each_opcheck
def test_opcheck(implementation, device):
    require("cross_attention", implementation, device)
    kind = {"device": device, "dtype": torch.bfloat16 if implementation == "cuda" else torch.float32}
    q, kv = torch.randn(3, 5, 64, **kind), torch.randn(3, 4, 128, **kind)
    op, backward = (registered(name, implementation) for name in ("cross_attention", "cross_attention_backward"))
    torch.library.opcheck(op, (q.clone().requires_grad_(), kv.clone().requires_grad_(), 2))
    for recompute in (False, True):
        torch.library.opcheck(backward, (q, q, kv, 2, recompute))
