"""Everything that only a GPU can tell, in one run: ``python benchmarks/gpu_check.py`` in an environment that has the package's
dependencies (``make gpu-check`` makes one).

Builds with CUDA, compiles every kernel for this GPU, runs the tests on it (all dtypes, every configuration), looks for memory
errors and races in the CUDA C++ kernels; then times the ops, and the training step against HiCMAE as published and AVF-MAE++ as released (less
than ten minutes). Logs go to ``benchmarks/results/<gpu>-<date>/``, rows to ``benchmarks/results/*.csv``, pictures and the README's table are
made from these; the exit code is the number of steps that failed.
"""

import datetime
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
CUDA_TESTS = [
    "tests/kernels/test_region_attention.py",
    "tests/kernels/test_gather_patches.py",
    "tests/kernels/test_masked_patch_loss.py",
    "tests/kernels/test_crop.py",
]


def main() -> int:
    if not torch.cuda.is_available():
        sys.exit("gpu_check: torch sees no CUDA device")
    name = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    results = ROOT / "benchmarks" / "results" / f"{name}-{datetime.date.today()}"
    results.mkdir(parents=True, exist_ok=True)
    major, minor = torch.cuda.get_device_capability()
    python, pytest = sys.executable, [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
    avfmae = [python, "-m", "avfmae"]
    archs = {"AVFMAE_BUILD": "cuda", "AVFMAE_CUDA_ARCHS": f"{major}{minor}"}
    steps = {
        "build": [python, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "-e", "."],
        "doctor": [*avfmae, "doctor"],
        "aot": [python, "-m", "avfmae_kernels.aot", "--arch", f"{major}{minor}"],
        "tests": [*pytest, "-m", "gpu", "-rs"],
    }  # fmt: skip
    if sanitizer := shutil.which("compute-sanitizer"):
        for tool in ("memcheck", "racecheck"):
            few = "cuda-gpu and (bfloat16 or crops) and not fine"  # instrumented kernels take a hundred times longer
            steps[tool] = [sanitizer, "--tool", tool, "--error-exitcode", "1", *pytest, "-m", "gpu", "-k", few, *CUDA_TESTS]
    else:
        print("compute-sanitizer is not installed: memory and race checks are left out")
    steps |= {
        "bench-kernels": [*avfmae, "bench", "kernels"],
        "bench-step": [*avfmae, "bench", "step", "--profile"],
        "bench-step-finetune": [*avfmae, "bench", "step", "--stage", "finetune"],
        "bench-step-huge": [*avfmae, "bench", "step", "--size", "huge", "--sides", "ours", "released", "--rounds", "3"],
        "bench-scaling": [*avfmae, "bench", "scaling"],
        "plot": [*avfmae, "bench", "plot"],
    }
    failed = []
    for step, command in steps.items():
        print(f"{step} …", end=" ", flush=True)
        with (results / f"{step}.txt").open("w") as log:
            code = subprocess.run(
                command, cwd=ROOT, env=os.environ | archs, stdout=log, stderr=subprocess.STDOUT
            ).returncode
        print("done" if code == 0 else f"failed ({code}), see {log.name}", flush=True)
        failed += [step] if code else []
    print(f"results: {results.relative_to(ROOT)}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
