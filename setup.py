"""Builds the compiled modules. None is required: without them the package runs on its PyTorch and NumPy twins and says so.

``avfmae_kernels._cpu_*``  kernels for the CPU over the torch stable ABI, one module for each processor generation.
``avfmae_kernels._cuda``   kernels for NVIDIA GPUs, where torch has CUDA and a toolkit is found.
``avfmae_kernels._host``   NumPy-facing helpers for data workers (pybind11).

AVFMAE_BUILD = auto (default) | cuda | cpu | abi3 | none chooses. ``auto`` builds what can be built; ``cuda``, ``cpu`` and
``abi3`` fail where that cannot. ``abi3`` is for a wheel that every Python from 3.11 loads: the CPU's kernels without ``_host``,
as what pybind11 makes loads in one version of Python only; NumPy draws the masks then.
AVFMAE_CPU_LEVELS = "avx2;avx512;avx512_bf16" chooses processor generations.
AVFMAE_CUDA_ARCHS = "80;90;100+PTX;120+PTX" chooses GPU generations; "+PTX" adds code that later ones compile.
AVFMAE_TORCH = the folder of the torch package to compile against, where it is not found by itself.

What was built, and why something was not, is kept in ``avfmae_kernels/_build.json``.
"""

import importlib.util
import json
import os
import platform
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

CHOICE = os.environ.get("AVFMAE_BUILD", "auto")
ARCHS = os.environ.get("AVFMAE_CUDA_ARCHS", "80;90;100+PTX;120+PTX").split(";")
STABLE_ABI = ["-DTORCH_TARGET_VERSION=0x020b000000000000", "-DTORCH_STABLE_ONLY", "-DPy_LIMITED_API=0x030b0000"]
# sqrt sets errno, comparisons trap: as far as the compiler knows, and then it does not vectorise them
OPTIMISE = [
    "-O3",
    "-std=c++20",
    "-fPIC",
    "-fvisibility=hidden",
    "-fopenmp-simd",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-DNDEBUG",
]
GENERATIONS = {  # by machine, as avfmae_kernels/processor.py tells them apart; csrc/cpu/simd.h has a vector's width
    "x86_64": {
        "avx2": ["-march=x86-64-v3"],
        "avx512": ["-march=x86-64-v4", "-mprefer-vector-width=512"],
        "avx512_bf16": ["-march=x86-64-v4", "-mavx512bf16", "-mprefer-vector-width=512"],
    },
    "aarch64": {"neon": ["-march=armv8-a"]},
}.get(platform.machine().lower().replace("amd64", "x86_64").replace("arm64", "aarch64"), {"baseline": []})
LEVELS = os.environ.get("AVFMAE_CPU_LEVELS", ";".join(GENERATIONS)).split(";")

LEFT_OUT = {"auto": (), "cuda": (), "cpu": ("_cuda",), "abi3": ("_cuda", "_host"), "none": ("_cpu", "_cuda", "_host")}
if CHOICE not in LEFT_OUT:
    sys.exit(f"AVFMAE_BUILD={CHOICE!r}: expected one of {', '.join(LEFT_OUT)}")
if not set(LEVELS) <= set(GENERATIONS):
    sys.exit(f"AVFMAE_CPU_LEVELS={';'.join(LEVELS)!r}: expected some of {';'.join(GENERATIONS)}")


class Missing(Exception):
    """What a module needs to be built and is not there."""


def torch_folders() -> Iterator[Path]:
    """Where the torch may lie that will load the kernels, most likely place first.

    A frontend that builds in an environment of its own (pip, ``python -m build``, uv) hides the environment that asked for it.
    That one is still known as the active environment, as the ``python`` on PATH, or as the interpreter of the parent process.
    """
    if given := os.environ.get("AVFMAE_TORCH"):
        yield Path(given)
        return
    if (spec := importlib.util.find_spec("torch")) and spec.origin:
        yield Path(spec.origin).parent
    yield Path(sysconfig.get_path("platlib")) / "torch"
    environments = [Path(os.environ[name]) / "bin" / "python" for name in ("VIRTUAL_ENV", "CONDA_PREFIX") if name in os.environ]
    parent = Path(f"/proc/{os.getppid()}/cmdline")
    if parent.exists() and "python" in (first := parent.read_bytes().split(b"\0")[0].decode(errors="replace")):
        environments.append(Path(shutil.which(first) or first))
    environments += [Path(found) for name in ("python", "python3") if (found := shutil.which(name))]
    for interpreter in environments:
        if interpreter.exists():
            code = "import importlib.util as u; s = u.find_spec('torch'); print(s.origin if s else '')"
            done = subprocess.run([interpreter, "-I", "-c", code], capture_output=True, text=True)
            if done.returncode == 0 and done.stdout.strip():
                yield Path(done.stdout.strip()).parent


def torch_folder() -> Path:
    """The folder of a torch that has the stable ABI's headers."""
    for folder in torch_folders():
        if (folder / "include" / "torch" / "csrc" / "stable" / "library.h").exists():
            return folder
    raise Missing(
        "no torch was found when the package was built; with torch installed, reinstall by "
        "`pip install --no-deps --force-reinstall` of the same source (or set AVFMAE_TORCH to torch's folder)"
    )


def torch_version(torch: Path) -> tuple[str, str | None]:
    """torch's version and its CUDA's, read and not imported."""
    text = (torch / "version.py").read_text()
    version = re.search(r"^__version__ *= *['\"](.+?)['\"]", text, re.MULTILINE)
    cuda = re.search(r"^cuda\b[^=]*= *['\"](.+?)['\"]", text, re.MULTILINE)
    if version is None:
        raise Missing(f"{torch / 'version.py'} names no version")
    return version[1], cuda and cuda[1]


@cache
def cxx() -> str:
    """A C++ compiler that knows C++20 and the processor generations, and finds Python's headers."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if not compiler or not shutil.which(shlex.split(compiler)[0]):
        raise Missing(
            "no C++ compiler was found when the package was built "
            f"({'CXX=' + compiler if compiler else 'c++, g++ or clang++ on PATH'})"
        )
    flags = ["-std=c++20", *(flag for level in LEVELS for flag in GENERATIONS[level]), f"-I{sysconfig.get_path('include')}"]
    probe = [*shlex.split(compiler), *flags, "-fsyntax-only", "-x", "c++", "-"]
    said = subprocess.run(probe, input="#include <Python.h>\n#include <concepts>\n", capture_output=True, text=True)
    if said.returncode:
        reason = next((line for line in said.stderr.splitlines() if "error" in line), f"exit code {said.returncode}")
        raise Missing(
            f"the C++ compiler {compiler} failed when the package was built ({reason}); GCC 11 or Clang 14 and python3-dev "
            "are needed"
        )
    return compiler


def ninja() -> str:
    try:
        import ninja

        return str(Path(ninja.BIN_DIR) / "ninja")
    except ImportError:
        if found := shutil.which("ninja"):
            return found
        raise Missing("ninja was not found when the package was built; `pip install ninja`, then reinstall") from None


def cuda_home() -> Path:
    """The CUDA toolkit's folder, asked of nvcc where that is a script or a link."""
    if home := os.environ.get("CUDA_HOME"):
        places = [Path(home)]
    elif nvcc := shutil.which("nvcc"):
        said = subprocess.run([nvcc, "-v", "-dryrun", "-x", "cu", "-c", os.devnull], capture_output=True, text=True)
        top = re.search(r"^#\$ TOP=(.+)$", said.stderr, re.MULTILINE)
        places = ([Path(top[1]).resolve()] if top else []) + [Path(nvcc).resolve().parent.parent]
    else:
        raise Missing("no CUDA toolkit was found when the package was built (CUDA_HOME, or nvcc on PATH)")
    for place in places:
        if (place / "include" / "cuda_runtime.h").exists():
            return place
    raise Missing(f"no include/cuda_runtime.h under {' or '.join(map(str, places))}")


def extensions() -> tuple[list[Extension], dict[str, str]]:
    """The modules to build, and why the others are not."""
    modules, missing = [], dict.fromkeys(LEFT_OUT[CHOICE], f"AVFMAE_BUILD={CHOICE} when the package was built")
    for name, make in {"_cpu": cpu_kernels, "_host": host, "_cuda": cuda_kernels}.items():
        if name in missing:
            continue
        try:
            cxx()
            ninja()
            modules += make()
        except Missing as reason:
            if CHOICE != "auto":
                sys.exit(f"AVFMAE_BUILD={CHOICE}, but {reason}")
            missing[name] = str(reason)
    return modules, missing


def linked_to_torch(name: str, sources: list[str], flags: list[str], libraries: list[str], **options) -> Extension:
    """A module over the stable ABI; one binary for every Python from 3.11 and torch from 2.11."""
    torch = torch_folder()
    return Extension(
        f"avfmae_kernels.{name}",
        ["csrc/module.cpp", *sources],
        include_dirs=["csrc", *options.pop("include_dirs", []), str(torch / "include"), sysconfig.get_path("include")],
        library_dirs=[str(torch / "lib"), *options.pop("library_dirs", [])],
        libraries=["torch", "torch_cpu", *libraries],
        extra_compile_args=[*OPTIMISE, *STABLE_ABI, f"-DAVFMAE_MODULE={name}", *flags],
        py_limited_api=True,
    )


def cpu_kernels() -> list[Extension]:
    # one translation unit a generation: most of a file's compile time is torch's headers
    sources = [f"-include{path.relative_to('csrc')}" for path in sorted(Path("csrc/cpu").glob("*.cpp"))]
    return [linked_to_torch(f"_cpu_{name}", [], [*GENERATIONS[name], *sources], []) for name in LEVELS]


def cuda_kernels() -> list[Extension]:
    version, cuda = torch_version(torch_folder())
    if cuda is None:
        raise Missing(f"torch {version} has no CUDA")
    home = cuda_home()
    options = {"include_dirs": [str(home / "include")], "library_dirs": [str(home / "lib64")]}
    return [
        linked_to_torch(
            "_cuda", sorted(map(str, Path("csrc/cuda").glob("*.cu"))), ["-DUSE_CUDA"], ["torch_cuda", "cudart"], **options
        )
    ]


def host() -> list[Extension]:
    try:
        import pybind11
    except ImportError:
        raise Missing("pybind11 was not found when the package was built; `pip install pybind11`, then reinstall") from None
    sources = sorted(map(str, Path("csrc/host").glob("*.cpp")))
    includes = ["csrc", pybind11.get_include(), sysconfig.get_path("include")]
    return [
        Extension("avfmae_kernels._host", sources, include_dirs=includes, extra_compile_args=[*OPTIMISE, "-fvisibility=hidden"])
    ]


def for_nvcc(flags: list[str]) -> list[str]:
    """The flags of a C++ source as nvcc takes them, with the GPU generations."""
    for_host = [f for f in flags if f.startswith("-f")]
    archs = []
    for arch in ARCHS:
        number = arch.removesuffix("+PTX")
        archs.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if arch.endswith("+PTX"):
            archs.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return [*(f for f in flags if f not in for_host), f"-Xcompiler={','.join(for_host)}", "-lineinfo", *archs]


class BuildExt(build_ext):
    """Compiles and links all modules in one run of ninja, on all cores, and only what has changed since the last one."""

    def build_extensions(self) -> None:
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        (build / "build.ninja").write_text("\n".join(self.ninja_lines(build)))
        jobs = [f"-j{self.parallel}"] if self.parallel else []
        if subprocess.run([ninja(), "-C", build, *jobs]).returncode:
            sys.exit("avfmae: the kernels do not compile (see above); AVFMAE_BUILD=none installs without them")
        update_record(sources=runpy.run_path("avfmae_kernels/sources.py")["digest"](Path("csrc")))

    def ninja_lines(self, build: Path) -> Iterator[str]:
        yield "ninja_required_version = 1.5"
        yield (
            f"rule cxx\n  command = {cxx()} -MMD -MF $out.d $flags -c $in -o $out\n  depfile = $out.d\n  deps = "
            "gcc\n  description = compile $out"
        )
        yield f"rule link\n  command = {cxx()} -shared $in -o $out $flags\n  description = link $out"
        if any(source.endswith(".cu") for e in self.extensions for source in e.sources):
            yield (
                f"rule nvcc\n  command = {cuda_home() / 'bin' / 'nvcc'} -MD -MF $out.d $flags -c $in -o $out\n  "
                "depfile = $out.d\n  deps = gcc\n  description = compile $out"
            )
        for extension in self.extensions:
            objects, includes = [], [f"-I{Path(folder).resolve()}" for folder in extension.include_dirs]
            for source in extension.sources:
                out = build / extension.name / f"{source}.o"
                is_cuda = source.endswith(".cu")
                flags = for_nvcc(extension.extra_compile_args) if is_cuda else extension.extra_compile_args
                yield (
                    f"build {out}: {'nvcc' if is_cuda else 'cxx'} {Path(source).resolve()}\n  flags = "
                    f"{shlex.join([*includes, *flags])}"
                )
                objects.append(str(out))
            module = Path(self.get_ext_fullpath(extension.name)).resolve()
            links = [*(f"-L{folder}" for folder in extension.library_dirs), *(f"-l{library}" for library in extension.libraries)]
            yield f"build {module}: link {' '.join(objects)}\n  flags = {shlex.join([*links, '-Wl,-s'])}"
        yield ""


def update_record(**values: object) -> None:
    """Keeps what is built, why the rest is not, and once it is built a digest of its sources, for ``avfmae doctor``."""
    path = Path("avfmae_kernels/_build.json")
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(before | values, indent=1) + "\n")


def packages() -> dict[str, str]:
    """Every package by name, with its folder. What is called otherwise here than when it is installed comes last."""
    found = {
        name: name.replace(".", "/")
        for name in find_packages(include=["avfmae", "avfmae.*", "avfmae_kernels", "avfmae_kernels.*"])
    }
    found |= {f"avfmae_{name}": name.replace(".", "/") for name in find_packages(include=["benchmarks", "benchmarks.*"])}
    return found | {"avfmae.configs": "train/configs"}


modules, missing = extensions()
update_record(modules=[m.name.rpartition(".")[2] for m in modules], missing=missing)
for name, reason in missing.items():
    print(f"avfmae: without avfmae_kernels.{name}: {reason}", file=sys.stderr)
setup(
    packages=[*packages()],
    package_dir=packages(),
    ext_modules=modules,
    cmdclass={"build_ext": BuildExt},
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if CHOICE == "abi3" else {},
)
