"""gelu_backward: every implementation that can run here against float64, gradient and answer; its errors; its contract."""

import pytest
import torch
import torch.nn.functional as F
from backends import each_backend, each_opcheck, registered, require
from correctness import TOLERANCE, error, poisoned

import avfmae_kernels as K
from avfmae_kernels.gelu_backward import gelu_backward

pytestmark = pytest.mark.isa

SHAPES = {"feed-forward": (2, 80, 2048), "odd": (3, 5, 7), "one number": (1,), "over a chunk": (3, 2049), "tall": (700, 33)}


def check_shape(implementation, shape, dtype, device="cpu"):
    g = torch.Generator().manual_seed(3)
    x, grad = (2 * torch.randn(shape, generator=g, dtype=torch.float64).to(dtype) for _ in range(2))
    exact = x.double().requires_grad_()
    out = F.gelu(exact)
    want = (*torch.autograd.grad(out, exact, grad.double()), out.detach())
    with K.use(implementation), poisoned():
        *got, sums = gelu_backward(grad.to(device), x.to(device), dtype)
    tolerance = {torch.float32: 1e-5}.get(dtype, 5e-3)
    for a, w in zip(got, want, strict=True):
        assert a.dtype == dtype and a.shape == x.shape and error(a, w) <= tolerance
    assert sums.dtype == dtype and error(sums, want[0].view(-1, shape[-1]).sum(0)) <= tolerance


@each_backend
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_against_float64(shape, dtype, implementation, device):
    require("gelu_backward", implementation, device)
    check_shape(implementation, shape, dtype, device)


def test_everywhere_on_the_line():
    require("gelu_backward", "cpp")
    x = torch.linspace(-30, 30, 100_001).requires_grad_()
    out = F.gelu(x.double())
    (want,) = torch.autograd.grad(out.sum(), x)
    with K.use("cpp"):
        grad, output, _ = gelu_backward(torch.ones(len(x)), x.detach())
    assert (output.double() - out).abs().max() <= 1e-6 and (grad - want).abs().max() <= 1e-6


def test_a_number_of_threads_does_not_change_the_sums():
    require("gelu_backward", "cpp")
    x, grad = torch.randn(2, 1000, 40)
    before, sums = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        with K.use("cpp"):
            sums.append(gelu_backward(grad, x)[2])
    torch.set_num_threads(before)
    assert torch.equal(sums[0], sums[1]) and torch.equal(sums[0], sums[2])


@pytest.mark.parametrize("implementation", ["reference", "cpp"])
@pytest.mark.parametrize(
    ("grad", "x", "words"),
    [
        (torch.zeros(0, 3), torch.zeros(0, 3), "x: got (0, 3)"),
        (torch.zeros(3), torch.zeros(3).double(), "x: got torch.float64"),
        (torch.zeros(3), torch.zeros(4), "grad: got (3,), expected (4,) like x"),
        (torch.zeros(3).bfloat16(), torch.zeros(3), "grad: got torch.bfloat16"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_wrong_arguments_are_named(grad, x, words, implementation):
    require("gelu_backward", implementation)
    with K.use(implementation), pytest.raises(ValueError) as caught:
        gelu_backward(grad, x)
    assert words in str(caught.value)


@each_opcheck
def test_opcheck(implementation, device):
    require("gelu_backward", implementation, device)
    x = torch.randn(3, 8, device=device)
    torch.library.opcheck(registered("gelu_backward", implementation), (x, x, torch.bfloat16))
