"""What the compiled module is made of, and that every kernel compiles for a GPU without one."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from processes import run_program, run_python

import avfmae_kernels
from avfmae_benchmarks import aot
from avfmae_kernels.compiled import MISSING
from avfmae_kernels.dispatch import TRITON_INSTALLED

ARCHS = (80, 86, 89, 90, 100, 120)
ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(MISSING["cpu"] is not None or shutil.which("nm") is None, reason="no compiled module, or no nm")
@pytest.mark.parametrize("module", sorted(Path(avfmae_kernels.__file__).parent.glob("*.abi3.so")), ids=lambda path: path.name)
def test_the_modules_keep_to_the_stable_abi(module):
    undefined = subprocess.run(["nm", "-DC", "--undefined-only", module], capture_output=True, text=True, check=True).stdout
    assert "aoti_torch" in undefined  # it does use torch
    assert not re.findall(r"\b(?:c10|at)::\S+", undefined)


needs_compiler = pytest.mark.skipif(not TRITON_INSTALLED or aot.tool("cuobjdump") is None, reason="no Triton, or no cuobjdump")


@pytest.mark.exhaustive
@needs_compiler
@pytest.mark.parametrize("arch", [90, 86])
def test_every_kernel_compiles_without_spills(arch):
    """For a data centre's chip, and for one with little shared memory: every Triton kernel in every dtype, of each the largest
    tiles, and (where nvcc is) all CUDA sources. ``python -m avfmae_benchmarks.aot --arch 80 86 89 90 100 120`` does all tiles."""
    done = run_python("-m", "avfmae_benchmarks.aot", "--largest", "--arch", arch)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    kernels = set(re.findall(r"(\w+_kernel)\b", done.stdout))
    files = ROOT.glob("avfmae_kernels/*/triton.py")
    written = {name for file in files for name in re.findall(r"def (\w+_kernel)\(", file.read_text())}
    assert len(written) > 6 and written <= kernels
    if shutil.which("nvcc"):
        assert all(f"{source.name}:" in done.stdout for source in ROOT.glob("csrc/cuda/*.cu"))


one_process = pytest.mark.xdist_group("kernel sources")


@pytest.fixture(scope="module")
def kernel_sources():
    """What is compiled, of a process that does not interpret the kernels."""
    done = run_program("kernel_sources", *ARCHS)
    assert done.returncode == 0, done.stderr[-3000:]
    return {int(arch): found for arch, found in json.loads(done.stdout).items()}


@one_process
@pytest.mark.slow
@needs_compiler
def test_the_table_has_every_kernel_in_every_dtype(kernel_sources):
    assert set(kernel_sources) == set(ARCHS)
    for arch, found in kernel_sources.items():
        dtypes = {}
        for kernel, kinds, _ in found["all"]:
            dtypes.setdefault(kernel, set()).update(kinds)
        for kernel, kinds in dtypes.items():
            assert {"*bf16", "*fp16", "*fp32"} <= kinds, (arch, kernel)


@one_process
@pytest.mark.slow
@needs_compiler
def test_the_largest_of_a_kernel_and_its_dtypes_is_one_source(kernel_sources):
    largest = kernel_sources[90]["largest"]
    chosen = [(kernel, constants.get("BACKWARD"), *kinds) for kernel, kinds, constants in largest]
    assert len(chosen) == len(set(chosen)) < len(kernel_sources[90]["all"])
    tiles = [constants["FEW"] for kernel, _, constants in largest if kernel == "few_keys_kernel"]
    assert len(tiles) == 3 and max(tiles) == 128  # one a dtype


def test_faults_are_told():
    def row(**change):
        return aot.Row(
            **{"kernel": "k", "constants": "", "arch": 90, "registers": 255, "stack": 0, "shared": 227 * 1024, "seconds": 20}
            | change
        )

    assert row().fault == ""
    assert "spill" in row(stack=8).fault
    assert "163 KiB" in row(arch=80).fault
    assert "21 s to compile" in row(seconds=21).fault and row(kernel="a.cu: k", seconds=21).fault == ""


def test_the_cuda_sources_ask_nothing_that_the_oldest_torch_lacks():
    """torch 2.11 has no STABLE_TORCH_ERROR_CODE_CHECK. `make cuda-build-check` builds against 2.11 and the newest."""
    assert not [f.name for f in ROOT.glob("csrc/**/*.*") if "STABLE_TORCH_ERROR_CODE_CHECK" in f.read_text()]
