"""Makes the folder that benchmarks/gpu_first.py is given on a GPU machine which cannot install anything: wheels, and the
package's compiled modules.

    python tools/gpu_wheels.py                            # wheels for Python 3.12, modules against torch 2.11.0, to
    build/gpu-wheels
    python tools/gpu_wheels.py --torch FOLDER             # against a torch with CUDA that is unpacked already
    python benchmarks/gpu_first.py --wheels build/gpu-wheels   # there, from the source tree

There must be torch with CUDA, Triton and NumPy, which are not carried. The modules keep to torch's stable ABI and Python's, so
that they load in every torch from
2.11 and every Python from 3.11; the wheels are for one Python.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from cuda_build_check import Failed, build, install, version_of

ROOT = Path(__file__).resolve().parents[1]
NEEDED = (
    "einops",
    "lazy-loader",
    "safetensors",
    "rich",
    "pytest",
    "pytest-xdist",
    "matplotlib",
)  # by kernels, model, benchmarks, tests and the page
THERE = ("torch", "triton", "numpy")  # wheels of these are not kept
LARGEST = 60e6  # bytes of the whole folder
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (28, 27, 24, 17, 12, 5)] + ["manylinux2014_x86_64"]


def download(folder: Path, python: str) -> list[Path]:
    """Wheels of what is needed and of what that needs. Returns them."""
    target = [
        "--only-binary=:all:",
        "--implementation",
        "cp",
        "--python-version",
        python,
        *(f"--platform={p}" for p in PLATFORMS),
    ]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--dest", folder, *target]
    done = subprocess.run([*map(str, command), "-c", str(ROOT / "constraints.txt"), *NEEDED], capture_output=True, text=True)
    if done.returncode:
        raise Failed(f"pip download gave {done.returncode}:\n{done.stderr[-2000:]}")
    for wheel in folder.glob("*.whl"):
        if wheel.name.partition("-")[0] in THERE:
            wheel.unlink()
    return sorted(folder.glob("*.whl"))


def modules(folder: Path, torch: Path | None, archs: str, scratch: Path) -> list[Path]:
    """The CUDA module, built against a torch with CUDA, and the CPU's as the source tree has them. Returns their copies."""
    scratch.mkdir(parents=True, exist_ok=True)
    log = scratch / "log.txt"
    torch = torch or install("2.11.0", scratch, False, log)
    version_of(torch)  # refuses one without CUDA
    built = [build(torch, scratch, archs, log), *sorted((ROOT / "avfmae_kernels").glob("_cpu_*.abi3.so"))]
    (folder / "avfmae_kernels").mkdir()
    return [Path(shutil.copy2(file, folder / "avfmae_kernels")) for file in built]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu-wheels", help="made anew")
    parser.add_argument("--python", default="3.12", help="of the wheels")
    parser.add_argument(
        "--torch",
        type=Path,
        help="folder of a torch package with CUDA; otherwise 2.11.0 is downloaded, as cuda_build_check.py does",
    )
    parser.add_argument("--archs", default="80;90;100+PTX;120+PTX", help="as AVFMAE_CUDA_ARCHS")
    args = parser.parse_args()
    if args.torch and not (args.torch / "version.py").exists():
        sys.exit(f"--torch: {args.torch} is no torch package (it has no version.py)")
    if not shutil.which("nvcc"):
        sys.exit("gpu_wheels: nvcc is not on PATH; it needs a CUDA toolkit")
    shutil.rmtree(args.out, ignore_errors=True)
    args.out.mkdir(parents=True)
    try:
        files = download(args.out, args.python) + modules(
            args.out, args.torch, args.archs, ROOT / "build" / "cuda-check" / "torch-2.11.0"
        )
    except Failed as reason:
        sys.exit(f"gpu_wheels: {reason}")
    total = sum(file.stat().st_size for file in files)
    for file in files:
        print(f"{file.stat().st_size / 1e6:6.2f} MB  {file.relative_to(args.out)}")
    print(f"{total / 1e6:6.2f} MB  {args.out}")
    return 0 if total < LARGEST else f"gpu_wheels: more than {LARGEST / 1e6:.0f} MB; name fewer GPUs by --archs"


if __name__ == "__main__":
    sys.exit(main())
