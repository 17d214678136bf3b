"""Builds the package with its CUDA kernels against several CUDA builds of torch, on a machine that needs nvcc but no GPU.

    python tools/cuda_build_check.py                      # the oldest torch that is supported, and the newest that pip finds
    python tools/cuda_build_check.py --torch 2.12.1 --load

Each torch goes to a folder of its own under build/cuda-check, without its dependencies: headers and libtorch are enough to
compile and to link. Then every symbol that the module asks of torch must be in that torch, none may be of its C++ namespaces
(c10::, at::), and every op of the CUDA sources must be registered. --load installs the dependencies too (some gigabytes), imports
the module, and asks torch for the registrations. One line a torch is printed, and the exit status is 1 if one fails.
"""

import argparse
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
NEEDED = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "csrc", "avfmae_kernels")  # of the source tree, for a build
LEFT_OUT = ("*.so", "__pycache__", "_build.json")


class Failed(Exception):
    """What is wrong with a build, for the user."""


def run(command: list, log: Path, **environment: str) -> None:
    """Runs a command, its output in a file.

    Raises:
        Failed: it did not succeed.
    """
    with log.open("a") as out:
        done = subprocess.run(list(map(str, command)), stdout=out, stderr=subprocess.STDOUT, env=os.environ | environment)
    if done.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise Failed(f"{command[0]} gave {done.returncode}; the end of {log}:\n{tail}")


def install(version: str, folder: Path, dependencies: bool, log: Path) -> Path:
    """torch's folder, with a CUDA build of it."""
    site = folder / "site"
    if not (site / "torch" / "version.py").exists() or (dependencies and not (site / "sympy").exists()):
        requirement = "torch" if version == "newest" else f"torch=={version}"
        options = ["--upgrade", "--target", site, *([] if dependencies else ["--no-deps"])]
        run([sys.executable, "-m", "pip", "install", "--quiet", *options, requirement, *(["numpy"] if dependencies else [])], log)
    return site / "torch"


def version_of(torch: Path) -> str:
    text = (torch / "version.py").read_text()
    if not re.search(r"^cuda\b[^=]*= *['\"]", text, re.MULTILINE):
        raise Failed(f"pip installed a torch without CUDA in {torch}; name a version that has it by --torch")
    return re.search(r"^__version__ *= *['\"](.+?)['\"]", text, re.MULTILINE)[1]


def build(torch: Path, folder: Path, archs: str, log: Path, cuda_only: bool = False) -> Path:
    """The compiled CUDA module, built from a copy of the sources; the CPU's lie beside it, with ``cuda_only`` without kernels."""
    source = folder / "source"
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir(parents=True)
    left_out = (*LEFT_OUT, "cpu") if cuda_only else LEFT_OUT
    for name in NEEDED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns(*left_out))
        else:
            shutil.copy(ROOT / name, source / name)
    command = ["-C", source, sys.executable, "setup.py", "build_ext", "--inplace", "--build-temp", folder / "temp"]
    run(["env", *command], log, AVFMAE_BUILD="cuda", AVFMAE_TORCH=str(torch), AVFMAE_CUDA_ARCHS=archs)
    return next((source / "avfmae_kernels").glob("_cuda*.so"))


def symbols(library: Path, kind: str) -> set[str]:
    """Dynamic symbols, ``undefined`` or ``defined``, demangled."""
    text = subprocess.run(["nm", "-DC", f"--{kind}-only", library], capture_output=True, text=True, check=True).stdout
    return {re.sub(r"^[0-9a-f]*\s+\S\s+", "", line).split("@")[0] for line in text.splitlines()}


def check_symbols(module: Path, torch: Path) -> int:
    """How many symbols the module asks of torch; all of them are there, and none is of its C++ namespaces."""
    undefined = symbols(module, "undefined")
    if unstable := sorted(s for s in undefined if re.search(r"\b(?:c10|at)::", s)):
        raise Failed(f"symbols outside the stable ABI: {', '.join(unstable[:5])}")
    asked = {s for s in undefined if s.startswith(("aoti_torch_", "torch_"))}
    offered = set.union(*(symbols(library, "defined") for library in (torch / "lib").glob("lib*torch*.so")))
    if missing := sorted(asked - offered):
        raise Failed(f"this torch has no {', '.join(missing[:5])}")
    if not asked:
        raise Failed("the module asks nothing of torch")
    return len(asked)


def registered_ops(source: Path) -> set[str]:
    """The ops that the CUDA sources register."""
    return set(re.findall(r'm\.impl\("(\w+)"', "".join(f.read_text() for f in (source / "csrc" / "cuda").glob("*.cu"))))


def check_ops(module: Path, ops: set[str]) -> None:
    content = module.read_bytes()
    if missing := sorted(op for op in ops if b"\0" + op.encode() + b"\0" not in content):
        raise Failed(f"the module does not register {', '.join(missing)}")


def check_loading(site: Path, source: Path, ops: set[str], log: Path) -> None:
    program = ROOT / "tools" / "load_cuda_ops.py"
    run([sys.executable, program, *sorted(ops)], log, PYTHONPATH=f"{site}{os.pathsep}{source}")


def check(version: str, args: argparse.Namespace) -> str:
    """One torch, from pip to the checks. Returns what is worth saying."""
    folder = args.folder.resolve() / f"torch-{version}"
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "log.txt"
    log.unlink(missing_ok=True)
    torch = install(version, folder, args.load, log)
    found, began = version_of(torch), time.monotonic()
    module = build(torch, folder, args.archs, log, args.cuda_only)
    seconds, ops = time.monotonic() - began, registered_ops(folder / "source")
    asked = check_symbols(module, torch)
    check_ops(module, ops)
    if args.load:
        check_loading(torch.parent, folder / "source", ops, log)
    size = module.stat().st_size / 2**20
    loads = "loads" if args.load else "not loaded (--load)"
    return (
        f"torch {found}: built in {seconds:.0f} s for {args.archs}, {size:.1f} MiB; {asked} symbols of torch, "
        f"all stable and there; {len(ops)} CUDA ops; {loads}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch", nargs="+", default=["2.11.0", "newest"], metavar="VERSION", help="versions, or newest")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "cuda-check", help="where all of it goes")
    parser.add_argument("--archs", default="80;90;100+PTX;120+PTX", help="as AVFMAE_CUDA_ARCHS")
    parser.add_argument("--cuda-only", action="store_true", help="leave out the CPU's kernels, which take minutes")
    parser.add_argument("--load", action="store_true", help="install torch's dependencies and import the module")
    args = parser.parse_args()
    for tool in ("nvcc", "nm"):
        if not shutil.which(tool):
            sys.exit(f"cuda_build_check: {tool} is not on PATH; it needs a CUDA toolkit and binutils")
    for package in ("ninja", "pybind11", "setuptools"):
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            sys.exit(
                f"cuda_build_check: {package} is not installed beside {sys.executable}; run it in the environment of `make test`"
            )
    failed = 0
    for version in args.torch:
        try:
            print(check(version, args), flush=True)
        except Failed as reason:
            failed += 1
            print(f"torch {version}: FAILED: {reason}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
