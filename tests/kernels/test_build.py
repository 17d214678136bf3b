"""What the compiled module is made of, and that every kernel compiles for a GPU without one."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import avfmae_kernels
from avfmae_kernels import aot
from avfmae_kernels.compiled import MISSING
from avfmae_kernels.dispatch import TRITON_INSTALLED
from avfmae_kernels.schemas import SCHEMAS, WITHOUT_TRITON

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(MISSING["cpu"] is not None or shutil.which("nm") is None, reason="no compiled module, or no nm")
@pytest.mark.parametrize("module", sorted(Path(avfmae_kernels.__file__).parent.glob("*.abi3.so")), ids=lambda path: path.name)
def test_the_modules_keep_to_the_stable_abi(module):
    undefined = subprocess.run(
        ["nm", "-DC", "--undefined-only", module], capture_output=True, text=True, check=True
    ).stdout
    assert "aoti_torch" in undefined  # it does use torch
    assert not re.findall(r"\b(?:c10|at)::\S+", undefined)


@pytest.mark.skipif(not TRITON_INSTALLED or aot.tool("cuobjdump") is None, reason="no Triton, or no cuobjdump")
def test_every_kernel_compiles_without_spills():
    """All Triton kernels at all the presets' shapes and configurations, and (where nvcc is) all CUDA sources."""
    done = subprocess.run([sys.executable, "-m", "avfmae_kernels.aot", "--arch", "90"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    kernels = set(re.findall(r"(\w+_kernel)\b", done.stdout))
    stems = set(SCHEMAS) - WITHOUT_TRITON - {"cross_attention", "cross_attention_backward"} | {"few_keys", "few_queries"}
    assert {f"{stem}_kernel" for stem in stems} <= kernels
    if shutil.which("nvcc"):
        assert all(f"{source.name}:" in done.stdout for source in ROOT.glob("csrc/cuda/*.cu"))


def test_faults_are_told():
    def row(**change):
        return aot.Row(
            **{"kernel": "k", "constants": "", "arch": 90, "registers": 255, "stack": 0, "shared": 227 * 1024} | change
        )

    assert row().fault == ""
    assert "spill" in row(stack=8).fault
    assert "163 KiB" in row(arch=80).fault
