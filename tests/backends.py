"""Where an op's implementations can run, as test parameters; GPU ones are marked ``gpu`` and skipped without one.

On a GPU Triton's kernels run compiled. Without one they run in Triton's interpreter, which ``conftest.py`` switches on.
"""

import pytest
import torch

from avfmae_kernels import chip
from avfmae_kernels.dispatch import why_not

HAS_GPU = torch.cuda.is_available()
GPU = [pytest.mark.gpu, pytest.mark.skipif(not HAS_GPU, reason="no GPU")]
DEVICES = ["cpu", pytest.param("cuda", marks=GPU)]
INTERPRETED = pytest.param(
    "triton", "cpu", id="triton-interpreted", marks=pytest.mark.skipif(HAS_GPU, reason="Triton's kernels run on the GPU")
)
REFERENCES = [pytest.param("reference", "cpu", id="reference"), pytest.param("reference", "cuda", id="reference-gpu", marks=GPU)]
KERNELS = [
    pytest.param("cpp", "cpu", id="cpp"),
    INTERPRETED,
    pytest.param("triton", "cuda", id="triton-gpu", marks=GPU),
    pytest.param("cuda", "cuda", id="cuda-gpu", marks=GPU),
]
each_backend = pytest.mark.parametrize(("implementation", "device"), REFERENCES + KERNELS)
each_kernel = pytest.mark.parametrize(("implementation", "device"), KERNELS)
# torch.library.opcheck traces and compiles, which takes seconds; an op's Triton twin has its schema and its fake results.
each_opcheck = pytest.mark.parametrize(
    ("implementation", "device"),
    [
        pytest.param(*k.values, id=k.id, marks=[*k.marks, pytest.mark.exhaustive if k is INTERPRETED else pytest.mark.slow])
        for k in KERNELS
    ],
)


def require(op: str, implementation: str, device: str = "cpu") -> None:
    """Skips the test where the implementation cannot run, saying why."""
    if reason := why_not(op, implementation, device):
        pytest.skip(reason)


def require_chip(op: str, implementation: str, device: str, *args) -> None:
    """Skips the test where this GPU cannot run an op of these arguments, or its gradient; dispatch leaves them to others."""
    if device == "cuda":
        capability = chip.compute_capability(None)
        for reason in (
            chip.why_not(op, implementation, capability, args),
            chip.why_not(f"{op}_backward", implementation, capability, (args[0], *args, False)),
        ):
            if reason:
                pytest.skip(reason)


def interpreted(implementation: str, device: str) -> bool:
    """Whether Triton's interpreter runs the case. It takes milliseconds a program, so that such cases are made smaller."""
    return (implementation, device) == ("triton", "cpu")


def registered(op: str, implementation: str):
    """The op of ``torch.ops.avfmae`` behind an implementation."""
    return getattr(torch.ops.avfmae, f"{op}_triton" if implementation == "triton" else op).default
