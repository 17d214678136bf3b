"""add_layer_norm and its parting and joining forms, in every implementation that can run here, against float64."""

import pytest
import torch
import torch.nn.functional as F
from backends import each_backend, each_opcheck, interpreted, registered, require
from correctness import TOLERANCE, check, poisoned

import avfmae_kernels as K

pytestmark = pytest.mark.isa

SHAPES = {
    "stage I": (4, 8, 11, 512),
    "large": (2, 8, 4, 640),
    "huge": (40, 768),
    "one row": (1, 384),
    "odd": (3, 5, 2, 77),
    "narrow": (2, 3, 5, 8),
}


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + len(shape)), dtype=torch.float64)


def oracle(x, residual, weight, bias):
    total = x + residual
    return total, F.layer_norm(total, weight.shape, weight, bias, 1e-6)


def check_shape(implementation, shape, dtype, device="cpu"):
    if interpreted(implementation, device):
        shape = (*(min(n, 3) for n in shape[:-1]), shape[-1])
    inputs = [randn(*shape), randn(*shape, seed=1), 1 + randn(shape[-1]) / 4, randn(shape[-1], seed=3)]
    check(implementation, K.add_layer_norm, oracle, inputs, dtype, device)
    check(
        implementation,
        lambda x, w, b: K.add_layer_norm(x, None, w, b)[1],
        lambda x, w, b: oracle(x, 0, w, b)[1],
        [inputs[0], *inputs[2:]],
        dtype,
        device,
    )


def check_slots(implementation, shape, dtype, device="cpu"):
    """Parting and joining: the answer is that of slices and concatenations."""
    C = shape[-1]
    norms = [1 + randn(C) / 4, randn(C, seed=2), 1 + randn(C, seed=4) / 4, randn(C, seed=5)]

    def split(x, residual, w0, b0, w1, b1):
        total = x + residual
        m, t = total[:, :, 0], total[:, :, 1:].flatten(1, 2)
        return m, F.layer_norm(m, (C,), w0, b0, 1e-6), t, F.layer_norm(t, (C,), w1, b1, 1e-6)

    def join(m, residual, t, w, b):
        x = torch.cat([(m + residual)[:, :, None], t.unflatten(1, (m.shape[1], -1))], dim=2)
        return x, F.layer_norm(x, (C,), w, b, 1e-6)

    check(
        implementation,
        lambda x, r, *n: K.split_add_layer_norm(x, r, n[:2], n[2:]),
        split,
        [randn(*shape), randn(*shape, seed=1), *norms],
        dtype,
        device,
    )
    B, R, S, _ = shape
    inputs = [randn(B, R, C), randn(B, R, C, seed=1), randn(B, R * (S - 1), C, seed=2), *norms[:2]]
    check(implementation, K.join_add_layer_norm, join, inputs, dtype, device)


def check_mixed(implementation, device="cpu"):
    """A float32 stream, a bfloat16 branch and a bfloat16 norm, as under autocast; rows of a buffer, read in place."""
    x, residual = randn(2, 3, 4, 64).float().to(device), randn(2, 3, 4, 64, seed=1).bfloat16().to(device)
    weight, bias = (1 + randn(64) / 4).float().to(device), randn(64, seed=3).float().to(device)
    results = []
    for implementation_ in (implementation, "reference"):
        leaves = [t.clone().requires_grad_() for t in (x, residual, weight, bias)]
        with K.use(implementation_), poisoned():
            total, y = K.add_layer_norm(leaves[0][:, :, 1:], leaves[1][:, :, 1:], *leaves[2:], dtype=torch.bfloat16)
            assert total.dtype == torch.float32 and y.dtype == torch.bfloat16
            (total.sin().sum() + y.float().cos().sum()).backward()
        results.append([total, y, *(leaf.grad for leaf in leaves)])
    for a, b in zip(*results, strict=True):
        assert a.dtype == b.dtype and (a.float() - b.float()).norm() <= 1e-2 * b.float().norm()


@each_backend
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_against_float64(shape, dtype, implementation, device):
    require("add_layer_norm", implementation, device)
    check_shape(implementation, shape, dtype, device)


@each_backend
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_slots_part_and_join(dtype, implementation, device):
    require("add_layer_norm", implementation, device)
    check_slots(implementation, (2, 3, 5, 48), dtype, device)


@each_backend
def test_dtypes_may_differ(implementation, device):
    require("add_layer_norm", implementation, device)
    check_mixed(implementation, device)


def test_a_gradient_to_one_answer_is_enough():
    x, residual = (randn(3, 4, 32, seed=s).float().requires_grad_() for s in (0, 1))
    weight, bias = torch.rand(32).requires_grad_(), torch.rand(32).requires_grad_()
    for which in (0, 1):
        grads = []
        for implementation in ("reference", "auto"):
            with K.use(implementation), poisoned():
                out = K.add_layer_norm(x, residual, weight, bias)[which]
                grads.append(torch.autograd.grad(out.sin().sum(), (x, residual)))
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("implementation", ["reference", "cpp"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.zeros(8)}, "x: got (8,)"),
        ({"x": torch.zeros(0, 8)}, "x: got (0, 8), expected (..., C) with at least one row"),
        ({"x": torch.zeros(4, 8, dtype=torch.int64)}, "x: got torch.int64"),
        ({"x": torch.zeros(8, 4).mT}, "x: its last dimension has stride 4"),
        ({"residual": torch.zeros(4, 9)}, "residual: got (4, 9), expected (4, 8) like x"),
        ({"residual": torch.zeros(4, 8, device="meta")}, "residual: is on meta"),
        ({"weight": torch.zeros(9)}, "weight: got (9,), expected (8,)"),
        ({"bias": torch.zeros(8, 1)}, "bias: got (8, 1)"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_wrong_arguments_are_named(change, words, implementation):
    require("add_layer_norm", implementation)
    arguments = {"x": torch.zeros(4, 8), "residual": torch.zeros(4, 8), "weight": torch.ones(8), "bias": torch.zeros(8)} | change
    with K.use(implementation), pytest.raises(ValueError) as caught:
        K.add_layer_norm(**arguments)
    assert words in str(caught.value)


@each_opcheck
def test_opcheck(implementation, device):
    require("add_layer_norm", implementation, device)
    x = torch.randn(2, 3, 16, device=device)
    w, b = torch.rand(16, device=device), torch.rand(16, device=device)
    total, y, stats = torch.empty_like(x), torch.empty_like(x), x.new_empty(6, 2)
    forward, backward = (registered(op, implementation) for op in ("add_layer_norm", "add_layer_norm_backward"))
    torch.library.opcheck(forward, (x, x.clone(), w, b, 1e-6, total, y, stats))
    forward(x, x.clone(), w, b, 1e-6, total, y, stats)
    torch.library.opcheck(
        backward, (None, y, total, stats, w, b, torch.empty_like(x), None, torch.empty_like(x), x.new_empty(1, 2, 16))
    )
