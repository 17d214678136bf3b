"""Which implementation runs is decided by what an op says of itself, whatever its name."""

import importlib
import sys

import pytest
import torch

import avfmae_kernels as K
from avfmae_kernels import dispatch, processor
from avfmae_kernels.compiled import MISSING
from avfmae_kernels.dispatch import IMPLEMENTATIONS, OPS

pytestmark = pytest.mark.isa

CPU = torch.device("cpu")
# What `avfmae bench kernels` has decided: under AVFMAE_ISA=avx2 no other C++ kernel was slower than its reference.
# column_sum has no C++ kernel: it is for GPUs
LEFT_TO_PYTORCH = {
    "avx2": {"column_sum", "matmul_bf16", "matmul_adamw"},
    "avx512": {"column_sum", "matmul_bf16", "matmul_adamw"},
    "avx512_bf16": {"column_sum"},
}


@pytest.fixture
def toy():
    """The toy op's module; the op is forgotten afterwards."""
    sys.modules.pop("toy_op", None)
    known = set(OPS)
    yield importlib.import_module("toy_op")
    for name in set(OPS) - known:
        del OPS[name]


@pytest.mark.skipif(MISSING["cpu"] is not None, reason=str(MISSING["cpu"]))
@pytest.mark.skipif(processor.LEVEL not in LEFT_TO_PYTORCH, reason="nothing was measured on such a processor")
def test_auto_takes_cpp_but_where_pytorch_is_faster():
    left = {name for name, op in OPS.items() if not op.host and dispatch.choose(name, CPU) == "reference"}
    assert left == LEFT_TO_PYTORCH[processor.LEVEL]


@pytest.mark.parametrize("level", processor.LEVELS)
def test_an_op_is_left_to_pytorch_on_the_levels_that_it_does_not_name(level, monkeypatch):
    monkeypatch.setattr(processor, "LEVEL", level)
    monkeypatch.setattr(dispatch, "why_not", lambda name, implementation, device: "no GPU" if implementation == "cuda" else None)
    op = dispatch.Op("op", "", None, frozenset({"cpu"}), "", False, ("avx512", "neon"), False, True)
    assert dispatch._automatic(op, "cpu") == (("cpp", "reference") if level in ("avx512", "neon") else ("reference",))


def test_an_op_is_added_by_one_file(toy):
    x = torch.randn(3, 4)
    assert torch.equal(toy.toy_scale(x, 2), 2 * x)
    assert K.explain()["toy_scale"]["reference"] == "runs"
    with K.use("cpp"), pytest.raises(RuntimeError, match="toy_scale: implementation 'cpp' was asked for, but it has no C"):
        toy.toy_scale(x, 2)
    assert torch.ops.avfmae.toy_scale(x.to("meta"), 2).shape == x.shape
    assert torch.equal(torch.compile(toy.toy_scale, fullgraph=True, backend="eager")(x, 2), 2 * x)


@pytest.mark.parametrize("implementation", ("triton", "cuda"))
def test_a_choice_for_the_models_ops_does_not_stop_the_optimiser_or_the_masks(implementation):
    with K.use(implementation):
        for name in ("adamw", "gradient_norm", "sample_masks"):
            assert dispatch.choose(name, CPU) == dispatch.AUTOMATIC[name, "cpu"][0]
    with K.use("reference"):
        assert dispatch.choose("adamw", CPU) == dispatch.choose("sample_masks", CPU) == "reference"


def test_every_op_says_why_an_implementation_does_not_run():
    for name, states in K.explain().items():
        assert set(states) == set(IMPLEMENTATIONS) and list(states.values()).count("runs") == 1, name
