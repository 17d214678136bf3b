"""region_attention: every implementation that can run here against float64, forward and gradient; its errors; its contract."""

import pytest
import torch
from backends import each_backend, each_opcheck, interpreted, registered, require, require_chip
from correctness import TOLERANCE, check, poisoned

import avfmae_kernels as K
from avfmae_kernels.region_attention import reference, region_attention_backward

pytestmark = pytest.mark.isa

SHAPES = {  # sequences, length, heads, head size
    "video stage I": (16, 11, 8, 64),
    "audio stage I": (16, 4, 8, 64),
    "fine video": (2, 101, 2, 64),
    "fine audio": (3, 17, 2, 64),
    "stage II": (4, 8, 8, 64),
    "units": (80, 2, 8, 64),
    "one sequence": (1, 3, 1, 64),
    "one token": (5, 1, 2, 64),
    "odd": (7, 5, 3, 80),
    "longest": (2, 128, 2, 80),
    "tiny head": (3, 6, 2, 8),
}


def inputs(N, S, heads, D):
    g = torch.Generator().manual_seed(N + S)
    return [torch.randn(N, S, 3 * heads * D, generator=g, dtype=torch.float64)]


def check_shape(implementation, shape, dtype, device="cpu"):
    heads = shape[2]
    if interpreted(implementation, device):
        shape = (min(shape[0], 7), *shape[1:])
    require_chip("region_attention", implementation, device, *(x.to(dtype) for x in inputs(*shape)), heads)
    check(
        implementation,
        lambda x: K.region_attention(x, heads),
        lambda x: reference.region_attention(x, heads),
        inputs(*shape),
        dtype,
        device,
    )


@each_backend
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_against_float64(shape, dtype, implementation, device):
    require("region_attention", implementation, device)
    check_shape(implementation, shape, dtype, device)


def check_strides(implementation, device="cpu"):
    """Rows of a buffer are read in place, and the answer is that of a copy; the output is recomputed with the gradient."""
    buffer = torch.randn(3, 4, 6, 3 * 32, device=device)
    for view in (buffer[:, :, 0], buffer[:, 1], buffer.transpose(1, 2)[:, :, 2], buffer[:, :, 1:, :].flatten(0, 1)):
        grad = torch.randn(*view.shape[:2], 32, device=device)
        with K.use(implementation), poisoned():
            out = K.region_attention(view, 2)
            dqkv, output = region_attention_backward(grad, view, 2)
        want, (want_grad, _) = (reference.region_attention(view, 2), reference.region_attention_backward(grad, view, 2, False))
        assert torch.allclose(out, want, atol=1e-5) and torch.allclose(dqkv, want_grad, atol=1e-5)
        assert torch.allclose(output, want, atol=1e-5) and out.is_contiguous()


@each_backend
def test_rows_may_lie_anywhere(implementation, device):
    require("region_attention", implementation, device)
    check_strides(implementation, device)


def test_large_logits_do_not_overflow():
    x = 300 * torch.randn(2, 5, 3 * 16)
    for implementation in ("reference", "cpp"):
        require("region_attention", implementation)
        with K.use(implementation):
            assert torch.allclose(
                K.region_attention(x, 1), reference.region_attention(x.double(), 1).float(), rtol=1e-4, atol=1e-2
            )


@pytest.mark.parametrize("implementation", ["reference", "cpp"])
@pytest.mark.parametrize(
    ("qkv", "heads", "words"),
    [
        (torch.zeros(4, 24), 1, "qkv: got (4, 24)"),
        (torch.zeros(2, 4, 25), 1, "qkv: got (2, 4, 25)"),
        (torch.zeros(2, 4, 24, device="meta", dtype=torch.int64), 1, "qkv: got torch.int64"),
        (torch.zeros(2, 0, 24), 1, "qkv: got (2, 0, 24)"),
        (torch.zeros(0, 4, 24), 1, "N and S at least 1"),
        (torch.zeros(2, 4, 24), 3, "num_heads: got 3, expected a divisor of the width 8"),
        (torch.zeros(2, 4, 24), 0, "num_heads: got 0"),
        (torch.zeros(1, 2, 3 * 256), 1, "heads of at most 128"),
        (torch.zeros(2, 4, 24, dtype=torch.float64), 1, "qkv: got torch.float64"),
        (torch.zeros(2, 24, 4).mT, 1, "qkv: its last dimension has stride 4, expected 1"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_wrong_arguments_are_named(qkv, heads, words, implementation):
    require("region_attention", implementation)
    with K.use(implementation), pytest.raises(ValueError) as caught:
        K.region_attention(qkv, heads)
    assert words in str(caught.value)


@each_opcheck
def test_opcheck(implementation, device):
    require("region_attention", implementation, device)
    qkv = torch.randn(3, 5, 3 * 32, device=device)
    op, backward = (registered(name, implementation) for name in ("region_attention", "region_attention_backward"))
    torch.library.opcheck(op, (qkv.clone().requires_grad_(), 2))
    for recompute in (False, True):
        torch.library.opcheck(backward, (qkv[..., :32].contiguous(), qkv, 2, recompute))
