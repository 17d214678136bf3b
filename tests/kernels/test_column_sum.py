"""column_sum: every implementation that can run here against float64, also where rows are parts of longer ones."""

import pytest
import torch
from backends import each_backend, each_kernel, each_opcheck, interpreted, registered, require
from correctness import TOLERANCE, error, poisoned

import avfmae_kernels as K

SHAPES = {"a bias": (20480, 512), "few rows": (3, 512), "one number": (1, 1), "odd": (1001, 77), "two blocks": (65, 129)}


def summed(implementation, x, dtype=torch.float32):
    with K.use(implementation), poisoned():
        return K.column_sum(x, dtype)


@each_backend
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_against_float64(shape, dtype, implementation, device):
    require("column_sum", implementation, device)
    rows, columns = (min(shape[0], 600), shape[1]) if interpreted(implementation, device) else shape
    x = torch.randn(rows, columns + 3, generator=torch.Generator().manual_seed(rows)).to(device, dtype)[:, :columns]
    want = x.double().sum(0).cpu()
    once, again = summed(implementation, x), summed(implementation, x)  # what the first call leaves is what the second needs
    assert once.dtype == torch.float32 and once.shape == (columns,)
    assert error(once, want) <= 1e-5 and torch.equal(once, again)
    assert torch.equal(summed(implementation, x, dtype), once.to(dtype))


@each_kernel
def test_no_rows_give_zero(implementation, device):
    require("column_sum", implementation, device)
    assert torch.equal(summed(implementation, torch.zeros(0, 5, device=device)).cpu(), torch.zeros(5))


@each_kernel
def test_an_expanded_gradient_is_summed(implementation, device):
    require("column_sum", implementation, device)
    assert torch.equal(summed(implementation, torch.ones((), device=device).expand(7, 3)).cpu(), torch.full((3,), 7.0))


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"x: got \(3,\), expected \(rows, C\)"):
        K.column_sum(torch.zeros(3))
    with pytest.raises(ValueError, match=r"x: got torch\.float64"):
        K.column_sum(torch.zeros(3, 4).double())


@each_opcheck
def test_opcheck(implementation, device):
    require("column_sum", implementation, device)
    torch.library.opcheck(
        registered("column_sum", implementation), (torch.randn(3, 8, device=device), torch.bfloat16), test_utils="test_schema"
    )
