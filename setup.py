"""Builds the two compiled modules. Neither is required: without them the package runs on its Python twins and says so.

``avfmae_kernels._C``     kernels over the torch stable ABI (target 2.11, abi3): CPU always, CUDA when the installed
                          torch has CUDA and a toolkit is found.
``avfmae_kernels._host``  NumPy-facing helpers for data workers (pybind11).

AVFMAE_BUILD = auto (default) | cuda | cpu | none chooses; ``cuda`` fails loudly where CUDA cannot be built.
AVFMAE_CUDA_ARCHS = "80;90;100" chooses the GPU generations.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CHOICE = os.environ.get("AVFMAE_BUILD", "auto")
ARCHS = os.environ.get("AVFMAE_CUDA_ARCHS", "80;90;100").split(";")
TORCH = Path(sysconfig.get_path("platlib")) / "torch"  # found, not imported: works in an isolated build too
STABLE_ABI = ["-DTORCH_TARGET_VERSION=0x020b000000000000", "-DTORCH_STABLE_ONLY", "-DPy_LIMITED_API=0x030b0000"]
# sqrt sets errno, comparisons trap: as far as the compiler knows, and then it does not vectorise them
OPTIMISE = ["-O3", "-std=c++20", "-fvisibility=hidden", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math"]

if CHOICE not in ("auto", "cuda", "cpu", "none"):
    sys.exit(f"AVFMAE_BUILD={CHOICE!r}: expected auto, cuda, cpu or none")


def cuda_home() -> Path | None:
    nvcc = shutil.which("nvcc")
    home = os.environ.get("CUDA_HOME") or (nvcc and Path(nvcc).resolve().parent.parent)
    return Path(home) if home and (Path(home) / "bin" / "nvcc").exists() else None


def torch_has_cuda() -> bool:
    return re.search(r"^cuda\b[^=]*= *['\"]", (TORCH / "version.py").read_text(), re.MULTILINE) is not None


def kernels(with_cuda: bool) -> Extension:
    sources = sorted(map(str, Path("csrc/cpu").glob("*.cpp")))
    extension = Extension(
        "avfmae_kernels._C",
        sources,
        include_dirs=["csrc", str(TORCH / "include")],
        library_dirs=[str(TORCH / "lib")],
        libraries=["torch", "torch_cpu"],
        extra_compile_args=[*OPTIMISE, *STABLE_ABI],
        depends=sorted(map(str, Path("csrc/common").glob("*.h"))),
        py_limited_api=True,
    )
    if with_cuda:
        extension.sources += sorted(map(str, Path("csrc/cuda").glob("*.cu")))
        extension.include_dirs.append(str(cuda_home() / "include"))
        extension.library_dirs.append(str(cuda_home() / "lib64"))
        extension.libraries += ["torch_cuda", "cudart"]
    return extension


def host() -> Extension:
    import pybind11

    return Extension(
        "avfmae_kernels._host",
        sorted(map(str, Path("csrc/host").glob("*.cpp"))),
        include_dirs=["csrc", pybind11.get_include()],
        extra_compile_args=OPTIMISE,
        depends=sorted(map(str, Path("csrc/common").glob("*.h"))),
    )


def extensions() -> list[Extension]:
    if CHOICE == "none":
        return []
    if not TORCH.exists():
        if CHOICE == "cuda":
            sys.exit(f"AVFMAE_BUILD=cuda, but no torch is installed in {TORCH.parent}")
        print(f"avfmae: no torch in {TORCH.parent}; building without avfmae_kernels._C", file=sys.stderr)
        return [host()]
    with_cuda = CHOICE != "cpu" and torch_has_cuda() and cuda_home() is not None
    if CHOICE == "cuda" and not with_cuda:
        reason = "no CUDA toolkit was found (CUDA_HOME or nvcc on PATH)" if torch_has_cuda() else "torch has no CUDA"
        sys.exit(f"AVFMAE_BUILD=cuda, but {reason}")
    return [kernels(with_cuda), host()]


class BuildExt(build_ext):
    """setuptools' build_ext that hands ``.cu`` files to nvcc."""

    def build_extension(self, ext):
        self.compiler.src_extensions.append(".cu")
        compile_cpp = self.compiler._compile

        def compile_one(obj, src, extension, cc_args, extra_postargs, pp_opts):
            if not src.endswith(".cu"):
                return compile_cpp(obj, src, extension, cc_args, extra_postargs, pp_opts)
            archs = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHS]
            command = [
                str(cuda_home() / "bin" / "nvcc"),
                "-c",
                src,
                "-o",
                obj,
                *pp_opts,
                "-O3",
                "-std=c++20",
                "-DUSE_CUDA",
                *STABLE_ABI,
                *archs,
                "-Xcompiler=-fPIC,-fvisibility=hidden",
                "-lineinfo",
            ]
            subprocess.run(command, check=True)

        self.compiler._compile = compile_one
        try:
            super().build_extension(ext)
        finally:
            self.compiler._compile = compile_cpp


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildExt})
