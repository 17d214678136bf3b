"""gated_sum: every implementation that can run here against float64, forward and gradients; its errors; its contract."""

import pytest
import torch
from backends import each_backend, each_opcheck, interpreted, registered, require
from correctness import TOLERANCE, check, poisoned

import avfmae_kernels as K

pytestmark = pytest.mark.isa

SHAPES = {"fusion": (2, 80, 512), "huge": (3, 768), "odd": (5, 3, 7), "one number": (1,)}


def oracle(gate_a, a, gate_b, b):
    return gate_a.sigmoid() * a + gate_b.sigmoid() * b


def check_shape(implementation, shape, dtype, device="cpu"):
    if interpreted(implementation, device):
        shape = (*(min(n, 9) for n in shape[:-1]), shape[-1])
    g = torch.Generator().manual_seed(len(shape))
    check(
        implementation,
        K.gated_sum,
        oracle,
        [2 * torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(4)],
        dtype,
        device,
    )


def check_mixed(implementation, device="cpu"):
    """bfloat16 gates of float32 branches, which are halves of one tensor."""
    gates = [torch.randn(3, 5, 32, device=device).bfloat16().requires_grad_() for _ in range(2)]
    z = torch.randn(3, 5, 64, device=device, requires_grad=True)
    grads = []
    for implementation_ in (implementation, "reference"):
        with K.use(implementation_), poisoned():
            out = K.gated_sum(gates[0], z[..., :32], gates[1], z[..., 32:])
            assert out.dtype == torch.float32
            grads.append([out, *torch.autograd.grad(out.sin().sum(), [*gates, z])])
    for a, b in zip(*grads, strict=True):
        assert a.dtype == b.dtype and (a.float() - b.float()).norm() <= 5e-3 * b.float().norm()


@each_backend
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_against_float64(shape, dtype, implementation, device):
    require("gated_sum", implementation, device)
    check_shape(implementation, shape, dtype, device)


@each_backend
def test_dtypes_may_differ(implementation, device):
    require("gated_sum", implementation, device)
    check_mixed(implementation, device)


def test_far_gates_are_shut_or_open():
    gate = torch.tensor([-1e4, -100.0, 100.0, 1e4])
    for implementation in ("reference", "cpp"):
        require("gated_sum", implementation)
        with K.use(implementation):
            out = K.gated_sum(gate, torch.ones(4), gate, torch.ones(4))
        assert torch.allclose(out, torch.tensor([0.0, 0.0, 2.0, 2.0]), atol=1e-6)


@pytest.mark.parametrize("implementation", ["reference", "cpp"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"a": torch.zeros(0, 4)}, "a: got (0, 4)"),
        ({"b": torch.zeros(3, 5)}, "b: got (3, 5), expected (3, 4) like a"),
        ({"gate_a": torch.zeros(3, 1)}, "gate_a: got (3, 1)"),
        ({"gate_b": torch.zeros(3, 4).double()}, "gate_b: got torch.float64, expected torch.float32 like gate_a"),
        ({"b": torch.zeros(3, 4, device="meta")}, "b: is on meta"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_wrong_arguments_are_named(change, words, implementation):
    require("gated_sum", implementation)
    arguments = {name: torch.zeros(3, 4) for name in ("gate_a", "a", "gate_b", "b")} | change
    with K.use(implementation), pytest.raises(ValueError) as caught:
        K.gated_sum(**arguments)
    assert words in str(caught.value)


@each_opcheck
def test_opcheck(implementation, device):
    require("gated_sum", implementation, device)
    x = [torch.randn(3, 8, device=device, requires_grad=True) for _ in range(4)]
    torch.library.opcheck(registered("gated_sum", implementation), tuple(x))
    backward = registered("gated_sum_backward", implementation)
    torch.library.opcheck(backward, tuple(t.detach() for t in (x[0], *x)))
