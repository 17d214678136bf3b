"""What this processor computes with, as the whole package takes it.

AVFMAE_ISA=avx2 (or avx512, avx512_bf16) caps an x86 processor, for tests and comparisons: our compiled kernels, what is chosen
among implementations, and torch with oneDNN behave as on a processor that has no more than that. Set it before the process
starts: where torch has computed before, a cap at avx2 is refused, but that oneDNN keeps what it has found cannot be seen.
"""

import os
import platform
from pathlib import Path

# From one x86 processor to the next: Haswell and Zen 1 to 3; Skylake-X and Ice Lake; Zen 4 and 5; Sapphire Rapids.
X86 = ("avx2", "avx512", "avx512_bf16", "amx")
LEVELS = (*X86, "neon", "baseline")  # ARM processors of 64 bits; all others, without vectors of our own
_FLAGS = {  # what Linux calls the parts of a level
    "avx2": {"avx2", "fma", "bmi1", "bmi2", "f16c", "movbe"},  # x86-64-v3
    "avx512": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},  # x86-64-v4
    "avx512_bf16": {"avx512_bf16"},
    "amx": {"amx_tile", "amx_bf16"},
}
_OF_ATEN = {"avx2": "avx2", "avx512": "avx512", "avx512_bf16": "avx512"}
_OF_ONEDNN = {"avx2": "AVX2", "avx512": "AVX512_CORE_VNNI", "avx512_bf16": "AVX512_CORE_BF16"}


def _detected() -> str | None:
    """The highest level whose parts, and those of all below it, the processor has; None: an x86 processor without AVX2."""
    cpuinfo = Path("/proc/cpuinfo")
    if platform.machine() in ("aarch64", "arm64"):
        return "neon"
    if platform.machine() != "x86_64":
        return "baseline"
    if not cpuinfo.exists():
        return None
    flags = next((set(line.split()) for line in cpuinfo.read_text().splitlines() if line.startswith("flags")), set())
    found = None
    for level in X86:
        if not flags >= _FLAGS[level]:
            break
        found = level
    return found


def _capped(detected: str | None) -> str | None:
    """The level under AVFMAE_ISA; torch and oneDNN are told of it."""
    cap = os.environ.get("AVFMAE_ISA")
    if not cap:
        return detected
    if cap not in _OF_ATEN:
        raise ValueError(f"environment AVFMAE_ISA: got {cap!r}, expected one of {', '.join(_OF_ATEN)}")
    if detected not in X86 or X86.index(detected) <= X86.index(cap):
        return detected
    os.environ["ATEN_CPU_CAPABILITY"], os.environ["ONEDNN_MAX_CPU_ISA"] = _OF_ATEN[cap], _OF_ONEDNN[cap]
    import torch

    if cap == "avx2" and torch.backends.cpu.get_cpu_capability() != "AVX2":
        raise RuntimeError("environment AVFMAE_ISA: torch has computed before avfmae_kernels was imported, and is not capped")
    return cap


LEVEL = _capped(_detected())


def has(level: str) -> bool:
    """Whether the processor has what a level of ``X86`` adds."""
    return LEVEL in X86 and X86.index(LEVEL) >= X86.index(level)


def module() -> str | None:
    """The compiled module for this processor; None where it is older than all of them."""
    return LEVEL and f"_cpu_{'avx512_bf16' if LEVEL == 'amx' else LEVEL}"
