"""The CPU's kernels are compiled for every processor generation, with vectors of its width, and are right there."""

import platform
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

from avfmae_kernels import processor

pytestmark = pytest.mark.slow

ROOT, HERE = Path(__file__).parents[2], Path(__file__).parent
TORCH = Path(sysconfig.get_path("platlib")) / "torch" / "include"
FLAGS = [
    "-std=c++20", "-O2", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", "-DTORCH_TARGET_VERSION=0x020b000000000000",
    "-DTORCH_STABLE_ONLY", f"-I{ROOT / 'csrc'}", f"-I{TORCH}",
]  # fmt: skip
GENERATIONS = {  # flags, numbers of a vector, and what the compiler calls its registers
    "avx2": (["-march=x86-64-v3"], 8, "%ymm"),
    "avx512": (["-march=x86-64-v4", "-mprefer-vector-width=512"], 16, "%zmm"),
    "neon": (["-march=armv8-a"], 4, ".4s"),
}


def compiler(generation: str) -> str:
    """The compiler for a generation's machine; skips the test where there is none."""
    machine = "aarch64" if generation == "neon" else "x86_64"
    name = "g++" if platform.machine() == machine else f"{machine}-linux-gnu-g++"
    if shutil.which(name) is None:
        pytest.skip(f"no {name}")
    return name


def runner(generation: str) -> list[str]:
    """What runs a program for a generation here: nothing, or an emulator; skips the test where nothing does."""
    if generation == "neon" and platform.machine() != "aarch64":
        emulator = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
        return [emulator] if emulator else pytest.skip("no qemu-aarch64")
    if generation != "neon" and not processor.has(generation):
        pytest.skip(f"this processor has no {generation}")
    return []


def run(*command) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("generation", GENERATIONS)
def test_the_numeric_kernels_are_right(generation, tmp_path):
    flags, width, _ = GENERATIONS[generation]
    emulator, program = runner(generation), tmp_path / "check"
    run(compiler(generation), *FLAGS, *flags, "-static", HERE / "vectors" / "check.cpp", "-o", program)
    assert run(*emulator, program).strip() == f"right with vectors of {width}"


@pytest.mark.exhaustive
@pytest.mark.parametrize("generation", GENERATIONS)
def test_every_source_compiles_to_vectors_of_the_generation(generation, tmp_path):
    """As setup.py does it: all sources of a generation are one translation unit."""
    flags, _, register = GENERATIONS[generation]
    sources = [f"-include{path}" for path in sorted((ROOT / "csrc" / "cpu").glob("*.cpp"))]
    (tmp_path / "empty.cpp").write_text("")
    run(compiler(generation), *FLAGS, *flags, *sources, "-S", tmp_path / "empty.cpp", "-o", tmp_path / "all.s")
    fused = [line for line in (tmp_path / "all.s").read_text().splitlines() if "fmadd" in line or "\tfmla" in line]
    assert sum(register in line for line in fused) > 100
    if generation == "avx2":
        assert "%zmm" not in "".join(fused)
