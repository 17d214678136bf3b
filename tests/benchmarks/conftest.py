"""What makes benchmarks quick where nothing is learnt of speed."""

import pytest

from avfmae_benchmarks import measure


@pytest.fixture(autouse=True)
def small_matrices(monkeypatch):
    """The rate of matrix products is measured on small ones: 2048 rows take seconds, and in bfloat16 without AVX-512 minutes."""
    monkeypatch.setitem(measure.SQUARE, "cpu", 256)
