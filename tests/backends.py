"""Where an op's implementations can run, as test parameters; GPU ones are marked ``gpu`` and skipped without one."""

import os
import subprocess
import sys
from pathlib import Path

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


def interpret(code: str) -> None:
    """Runs ``code``, which prints "proven" at its end, with Triton in its interpreter; it may import the kernel tests."""
    pytest.importorskip("triton")
    here = Path(__file__).parent
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    code = f"import sys; sys.path[:0] = {[str(here / 'kernels'), str(here)]!r}\n{code}"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "proven", done.stderr[-2000:]
