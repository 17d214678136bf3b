"""What makes benchmarks quick where nothing is learnt of speed."""

import pytest


@pytest.fixture(autouse=True)
def small_matrices(monkeypatch):
    """The rate of matrix products is measured on small ones: 2048 rows take seconds, and in bfloat16 without AVX-512 minutes."""
    from avfmae_benchmarks import measure  # here, as what it needs is not installed on every machine that collects tests

    monkeypatch.setitem(measure.SQUARE, "cpu", 256)
