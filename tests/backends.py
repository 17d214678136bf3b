"""Where an op's implementations can run, as test parameters; GPU ones are marked ``gpu`` and skipped without one."""

import pytest
import torch

from avfmae_kernels.dispatch import why_not

GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
DEVICES = ["cpu", pytest.param("cuda", marks=GPU)]
BACKENDS = [
    pytest.param("reference", "cpu", id="reference"),
    pytest.param("cpp", "cpu", id="cpp"),
    *(pytest.param(name, "cuda", id=f"{name}-gpu", marks=GPU) for name in ("reference", "triton", "cuda")),
]
each_backend = pytest.mark.parametrize(("implementation", "device"), BACKENDS)


def require(op: str, implementation: str, device: str = "cpu") -> None:
    """Skips the test where the implementation cannot run, saying why."""
    if reason := why_not(op, implementation, device):
        pytest.skip(reason)
