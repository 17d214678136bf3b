"""Products of bfloat16 and float32 matrices on the CPU, against float64."""

import pytest
import torch
from backends import require

import avfmae_kernels as K

pytestmark = pytest.mark.isa

SIZES = [
    (1, 1, 1),
    (4, 512, 64),
    (3, 7, 5),
    (14, 31, 32),
    (15, 33, 31),
    (29, 64, 70),
    (352, 96, 160),
    (600, 1024, 96),
]  # blocks, panels, chunks
IMPLEMENTATIONS = ["cpp", "reference"]


def matrix(rows, columns, dtype, turned, seed):
    g = torch.Generator().manual_seed(seed)
    shape = (columns, rows) if turned else (rows, columns)
    m = torch.randn(shape, generator=g).to(dtype)
    return m.mT if turned else m


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("turned", [(False, False), (True, False), (False, True), (True, True)], ids=["ab", "aᵀb", "abᵀ", "aᵀbᵀ"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_against_float64(size, turned, implementation):
    require("matmul_bf16", implementation)
    M, inner, N = size
    for wide_a, wide_b in ((False, False), (True, False), (False, True)):
        a = matrix(M, inner, torch.float32 if wide_a else torch.bfloat16, turned[0], 0)
        b = matrix(inner, N, torch.float32 if wide_b else torch.bfloat16, turned[1], 1)
        bias = torch.randn(N, generator=torch.Generator().manual_seed(2))
        exact = a.bfloat16().double() @ b.bfloat16().double() + bias.double()
        with K.use(implementation):
            wide = K.matmul_bf16(a, b, bias, torch.float32)
            narrow = K.matmul_bf16(a, b, bias.bfloat16())
        assert wide.dtype == torch.float32 and narrow.dtype == torch.bfloat16
        assert (wide - exact).abs().max() <= 1e-5 * inner**0.5 * exact.abs().max()
        assert torch.allclose(narrow.double(), exact, rtol=2**-7, atol=2**-6)


def test_rows_of_a_larger_matrix_and_none_at_all():
    require("matmul_bf16", "cpp")
    large = torch.randn(40, 96)
    part = large[3:30, 32:64]  # rows far apart
    for b in (torch.randn(32, 48), torch.randn(48, 32).mT, torch.randn(64, 96)[::2, ::2]):
        exact = part.bfloat16().double() @ b.bfloat16().double()
        assert torch.allclose(K.matmul_bf16(part, b, dtype=torch.float32).double(), exact, atol=1e-4)
    assert K.matmul_bf16(torch.randn(0, 32), torch.randn(32, 48)).shape == (0, 48)
    assert torch.equal(
        K.matmul_bf16(torch.randn(40, 0), torch.randn(0, 3), torch.ones(3)), torch.ones(40, 3, dtype=torch.bfloat16)
    )


def test_what_is_not_finite_stays_where_it_is():
    require("matmul_bf16", "cpp")
    a, b = torch.randn(20, 40), torch.randn(40, 50)
    a[7, 3], b[5, 9] = torch.inf, torch.nan
    out = K.matmul_bf16(a, b, dtype=torch.float32)
    bad = torch.zeros(20, 50, dtype=torch.bool)
    bad[7], bad[:, 9] = True, True
    assert torch.equal(~out.isfinite(), bad)


@pytest.mark.parametrize("threads", [1, 3])
def test_any_number_of_threads_gives_the_same_bits(threads):
    require("matmul_bf16", "cpp")
    a, b = torch.randn(300, 128), torch.randn(256, 128).mT
    before, expected = torch.get_num_threads(), K.matmul_bf16(a, b)
    try:
        torch.set_num_threads(threads)
        assert torch.equal(K.matmul_bf16(a, b), expected)
    finally:
        torch.set_num_threads(before)


def test_errors_name_the_argument():
    a, b = torch.randn(3, 4), torch.randn(4, 5)
    with pytest.raises(ValueError, match=r"a, b: got \(3, 4\) and \(3, 4\)"):
        K.matmul_bf16(a, a)
    with pytest.raises(ValueError, match=r"bias: got \(4,\), expected \(5,\)"):
        K.matmul_bf16(a, b, torch.randn(4))
    with pytest.raises(ValueError, match=r"dtype: got torch\.float16"):
        K.matmul_bf16(a, b, dtype=torch.float16)
    with pytest.raises(ValueError, match=r"b: got torch\.float64"):
        K.matmul_bf16(a, b.double())
