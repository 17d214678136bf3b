"""What the compiled module is made of, and that the CUDA sources compile cleanly where there is a compiler for them."""

import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

import avfmae_kernels
from avfmae_kernels.dispatch import COMPILED_MISSING

ROOT = Path(__file__).parents[2]
TORCH = Path(sysconfig.get_path("platlib")) / "torch"


@pytest.mark.skipif(COMPILED_MISSING is not None or shutil.which("nm") is None, reason="no compiled module, or no nm")
def test_the_module_keeps_to_the_stable_abi():
    (module,) = Path(avfmae_kernels.__file__).parent.glob("_C.abi3.so")
    undefined = subprocess.run(
        ["nm", "-DC", "--undefined-only", module], capture_output=True, text=True, check=True
    ).stdout
    assert "aoti_torch" in undefined  # it does use torch
    assert not re.findall(r"\b(?:c10|at)::\S+", undefined)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
@pytest.mark.parametrize("source", sorted(ROOT.glob("csrc/cuda/*.cu")), ids=lambda p: p.stem)
def test_cuda_sources_compile_without_spills(source, tmp_path):
    done = subprocess.run(
        ["nvcc", "-c", source, "-o", tmp_path / "x.o", f"-I{ROOT / 'csrc'}", f"-I{TORCH / 'include'}", "-O3", "-std=c++20",
         "-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020b000000000000", "-DTORCH_STABLE_ONLY", "-gencode=arch=compute_90,code=sm_90",
         "-Xptxas=-v", "-Xcompiler=-fPIC"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    report = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
    assert report and all(numbers == ("0", "0", "0") for numbers in report)
