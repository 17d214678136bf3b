"""Everything that only a GPU can tell, the most worth knowing first: ``python benchmarks/gpu_first.py --out FOLDER``.

Parts (``--list``) run one after the other, each for a limited time; what they find is written as it is found. ``--minutes 9``
stops cleanly before nine minutes are over; the same command again, on the same kind of machine, goes on where that one stopped.
At the end stands ``FOLDER/page.html``.

Beside torch with CUDA, Triton and NumPy little is needed. Where it is not installed and cannot be, carry the folder that ``make
gpu-wheels`` makes, and give it with ``--wheels``. ``--device cpu`` is a dry run on tiny shapes. This file only makes the packages
importable; see ``benchmarks/first``.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CARRIED = ROOT / "build" / "carried"


def unpack(wheels: Path) -> None:
    """Installs carried wheels into a folder of their own, and puts carried compiled modules where the package looks for them."""
    if not wheels.is_dir():
        sys.exit(f"--wheels: there is no folder {wheels}")
    for module in wheels.glob("avfmae_kernels/*.so"):
        shutil.copy2(module, ROOT / "avfmae_kernels" / module.name)
    found, mark = sorted(map(str, wheels.glob("*.whl"))), CARRIED / "wheels.txt"
    if not found or (mark.exists() and mark.read_text().split("\n") == found):
        return
    quiet = [
        "--quiet",
        "--no-index",
        "--no-deps",
        "--no-compile",
        "--upgrade",
        "--disable-pip-version-check",
        "--root-user-action",
        "ignore",
    ]
    subprocess.run([sys.executable, "-m", "pip", "install", *quiet, "--target", str(CARRIED), *found], check=True)
    mark.write_text("\n".join(found))


def main() -> None:
    """Goes on as ``python -m avfmae_benchmarks.first`` with this source tree, and what was carried, on the path."""
    given = sys.argv[1:]
    wheels = next((given[i + 1] for i, word in enumerate(given[:-1]) if word == "--wheels"), None)
    wheels = wheels or next((word.partition("=")[2] for word in given if word.startswith("--wheels=")), None)
    CARRIED.mkdir(parents=True, exist_ok=True)
    if wheels:
        unpack(Path(wheels))
    package = CARRIED / "avfmae_benchmarks"
    if not package.is_symlink():
        package.symlink_to(ROOT / "benchmarks", target_is_directory=True)
    path = os.pathsep.join(filter(None, [str(ROOT), str(CARRIED), os.environ.get("PYTHONPATH")]))
    os.execve(sys.executable, [sys.executable, "-m", "avfmae_benchmarks.first", *given], os.environ | {"PYTHONPATH": path})


if __name__ == "__main__":
    main()
