"""Proves the Triton kernels with the oldest Triton that is supported and the newest, beside the newest NumPy; no GPU is needed.

    python tools/triton_check.py                      # the interpreter's tests, and the compilation of every kernel's largest
    tiles
    python tools/triton_check.py --triton 3.7.* -k interpreted

Each Triton goes to a folder of its own under build/triton-check, which comes before the environment's packages. One line a Triton
is
printed, and the exit status is 1 if one fails.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = "interpreted or compiles_without_spills"


def installed(version: str, folder: Path) -> Path:
    """A folder with this Triton and the newest NumPy, made where it is not there."""
    if not (folder / "triton").exists():
        requirement = "triton" if version == "newest" else f"triton=={version}"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, requirement, "numpy"]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"triton_check: pip could not install {requirement}:\n{done.stderr[-2000:]}")
    return folder


def versions(folder: Path) -> str:
    return " and ".join(sorted(f.name.removesuffix(".dist-info").replace("-", " ") for f in folder.glob("*.dist-info")))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--triton", nargs="+", default=["3.6.*", "newest"], metavar="VERSION", help="versions, or newest")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "triton-check", help="where they go")
    parser.add_argument("-k", default=TESTS, metavar="EXPRESSION", help="which tests of tests/kernels, as pytest takes it")
    args = parser.parse_args()
    failed = 0
    for version in args.triton:
        folder = installed(version, args.folder.resolve() / version.replace("*", "x"))
        log, began = folder.with_suffix(".txt"), time.monotonic()
        paths = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
        command = [sys.executable, "-m", "pytest", str(ROOT / "tests" / "kernels"), "-k", args.k, "-p", "no:cacheprovider"]
        with log.open("w") as out:
            done = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, cwd=ROOT, env=os.environ | {"PYTHONPATH": paths})
        last = (log.read_text().strip().splitlines() or ["no output"])[-1]
        failed += done.returncode != 0
        state = "passed" if done.returncode == 0 else f"FAILED, see {log}"
        print(f"{versions(folder)}: {state} in {time.monotonic() - began:.0f} s ({last})", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
