"""Compiles every kernel for chosen GPUs, on a machine that need not have one.

``python -m avfmae_benchmarks.aot --arch 80 86 89 90 100 120`` compiles each Triton kernel at every dtype, shape and configuration
that the presets use (:mod:`avfmae_benchmarks.triton_launches`), and each CUDA source. It prints what they take of a
multiprocessor and how long they took to compile. It fails on a spill, a stack frame, more shared memory than the chip has, or a
compilation of more than 20 seconds.
"""

import argparse
import importlib
import math
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from avfmae_kernels.chip import shared_memory

SLOW = 20  # seconds of processor time that a Triton kernel may take to compile


@dataclass(frozen=True)
class Row:
    """What a compiled kernel takes: registers a thread, bytes of stack a thread, bytes of shared memory a block, seconds to
    compile."""

    kernel: str
    constants: str
    arch: int
    registers: int
    stack: int
    shared: int
    seconds: float

    @property
    def fault(self) -> str:
        if self.stack:
            return f"{self.stack} bytes of stack: registers spill"
        if self.shared > shared_memory(self.arch):
            return f"more than the {shared_memory(self.arch) // 1024} KiB of shared memory that sm_{self.arch} has"
        if self.seconds > SLOW and ".cu:" not in self.kernel:
            return f"{self.seconds:.0f} s to compile, more than {SLOW}"
        return ""


NAMES = {
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float32: "fp32",
    torch.uint8: "u8",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.bool: "i1",
}


def sources(arch: int) -> dict[tuple, tuple]:
    """Every distinct (kernel, signature, constants, options) of the launches on such a chip, with what compiles it."""
    from avfmae_benchmarks.triton_launches import record_launches
    from avfmae_kernels.triton_tools import OPTIONS

    found = {}
    for launch in record_launches(arch):
        for configuration in launch.configurations:
            values = dict(zip((p.name for p in launch.kernel.params), launch.args, strict=False)) | launch.constants
            values |= {k: v for k, v in configuration.items() if k not in OPTIONS}
            signature, constants, divisible = {}, {}, {}
            for i, parameter in enumerate(launch.kernel.params):
                value = values[parameter.name]
                if isinstance(value, torch.Tensor):
                    signature[parameter.name] = f"*{NAMES[value.dtype]}"
                    divisible[(i,)] = [["tt.divisibility", 16]]
                elif parameter.is_constexpr or (type(value) is int and value == 1):
                    signature[parameter.name], constants[parameter.name] = "constexpr", value
                elif isinstance(value, float):
                    signature[parameter.name] = "fp32"
                else:
                    signature[parameter.name] = "i32"
                    if value % 16 == 0:
                        divisible[(i,)] = [["tt.divisibility", 16]]
            options = {k: v for k, v in configuration.items() if k in OPTIONS}
            key = (
                launch.kernel.fn.__module__,
                launch.kernel.fn.__name__,
                *(tuple(d.items()) for d in (signature, constants, options)),
            )
            found[key] = (launch.kernel.fn.__module__, launch.kernel.fn.__name__, signature, constants, divisible, options)
    return found


def largest(found: dict[tuple, tuple]) -> dict[tuple, tuple]:
    """Of each kernel and its dtypes the source with the largest tiles for the fewest warps: the first to spill or to need too
    much."""

    def size(source: tuple) -> float:
        _, _, _, constants, _, options = source
        return math.prod(v for v in constants.values() if type(v) is int and v > 1) / options["num_warps"]

    chosen = {}
    for key, source in found.items():
        dtypes = source[1], source[3].get("BACKWARD"), *(kind for kind in source[2].values() if kind.startswith("*"))
        if dtypes not in chosen or size(source) > size(found[chosen[dtypes]]):
            chosen[dtypes] = key
    return {key: found[key] for key in chosen.values()}


def tool(name: str) -> str | None:
    """Path of a CUDA binary tool: the toolkit's, or the one that Triton brings along."""
    import triton

    bundled = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return shutil.which(name) or (str(bundled) if bundled.exists() else None)


def resources(cubin: Path) -> list[tuple[str, int, int, int]]:
    """Name, registers, stack and static shared memory of each kernel in a cubin."""
    text = subprocess.run([tool("cuobjdump"), "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
    rows = re.findall(r"Function (\S+?):?\n\s*REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", text)
    return [(name, int(registers), int(stack) + int(local), int(shared)) for name, registers, stack, shared, local in rows]


def processor_time() -> float:
    """Seconds of this process and of those that it has waited for (ptxas); other work on the machine does not count."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def compile_triton(source: tuple, arch: int) -> Row:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module, name, signature, constants, divisible, options = source
    kernel = getattr(importlib.import_module(module), name)
    ast = ASTSource(kernel, signature, constexprs=constants, attrs=divisible)
    began = processor_time()
    compiled = triton.compile(ast, target=GPUTarget("cuda", arch, 32), options=options)
    seconds = processor_time() - began
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        ((_, registers, stack, static),) = resources(Path(file.name))
    words = [f"{k}={v}" for k, v in (constants | options).items()] + sorted({s for s in signature.values() if s.startswith("*")})
    return Row(name, " ".join(words), arch, registers, stack, max(static, compiled.metadata.shared), seconds)


def compile_cuda(source: Path, arch: int) -> list[Row]:
    """Rows of one CUDA file; its shared memory is the static part (the file asserts the rest itself)."""
    include = Path(sysconfig.get_path("platlib")) / "torch" / "include"
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernels.cubin"
        command = [
            "nvcc",
            "-cubin",
            source,
            "-o",
            cubin,
            f"-I{source.parents[1]}",
            f"-I{include}",
            "-O3",
            "-std=c++20",
            "-DUSE_CUDA",
            "-DTORCH_TARGET_VERSION=0x020b000000000000",
            "-DTORCH_STABLE_ONLY",
            f"-arch=sm_{arch}",
        ]
        began = processor_time()
        done = subprocess.run(command, capture_output=True, text=True)
        seconds = processor_time() - began
        if done.returncode:
            raise RuntimeError(f"{source.name} for sm_{arch}:\n{done.stderr[-3000:]}")
        found = resources(cubin)
    demangle = shutil.which("cu++filt") or shutil.which("c++filt")
    names = [name for name, *_ in found]
    if demangle:
        names = subprocess.run([demangle], input="\n".join(names), capture_output=True, text=True).stdout.splitlines()
    rows = []
    for name, (_, registers, stack, shared) in zip(names, found, strict=True):
        match = re.search(r"(\w+)<(.*?)>\(", name)
        kernel, types = match.groups() if match else (name, "")
        rows.append(Row(f"{source.name}: {kernel}", types, arch, registers, stack, shared, seconds))
    return rows


def rows(archs: list[int], jobs: int, only_largest: bool = False) -> Iterator[Row]:
    """Compiles everything, or of each Triton kernel and its dtypes the largest tiles; rows come as they are done."""
    cuda = sorted((Path(__file__).parents[1] / "csrc" / "cuda").glob("*.cu"))
    if shutil.which("nvcc") is None or not cuda:
        print("CUDA sources: not compiled, as there is no nvcc or no source tree", file=sys.stderr)
        cuda = []
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # what every release so far does
    triton = {arch: (largest(sources(arch)) if only_largest else sources(arch)).values() for arch in archs}
    with tempfile.TemporaryDirectory() as cache, ProcessPoolExecutor(jobs) as pool:
        os.environ["TRITON_CACHE_DIR"] = cache  # of its own: what was compiled before would seem to take no time
        tasks = [pool.submit(compile_cuda, source, arch) for arch in archs for source in cuda]
        tasks += [pool.submit(compile_triton, source, arch) for arch in archs for source in triton[arch]]
        for task in tasks:
            result = task.result()
            yield from result if isinstance(result, list) else [result]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", type=int, nargs="+", default=[90], help="compute capabilities, such as 80 90 120")
    parser.add_argument("--largest", action="store_true", help="of each Triton kernel and its dtypes only the largest tiles")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--quiet", action="store_true", help="only each kernel's largest figures")
    args = parser.parse_args()
    if tool("cuobjdump") is None:
        sys.exit("aot: cuobjdump was found neither in a CUDA toolkit nor in Triton; install either")
    print(f"{'arch':>5} {'registers':>9} {'shared':>7} {'stack':>5} {'seconds':>7}  kernel")
    faults, done, worst = [], 0, {}
    for row in rows(args.arch, args.jobs, args.largest):
        done += 1
        worst.setdefault((row.arch, row.kernel), []).append(row)
        if not args.quiet:
            print(line(row), flush=True)
        if row.fault:
            faults.append(f"sm_{row.arch} {row.kernel} {row.constants}: {row.fault}")
    if args.quiet:
        for (arch, kernel), found in worst.items():
            figures = (max(getattr(row, name) for row in found) for name in ("registers", "stack", "shared", "seconds"))
            print(line(Row(kernel, "", arch, *figures)))
    print(f"{done} kernels compiled for {', '.join(f'sm_{a}' for a in args.arch)}; {len(faults)} at fault")
    for fault in faults:
        print(f"  {fault}")
    return 1 if faults or not done else 0


def line(row: Row) -> str:
    return (
        f"sm_{row.arch:<3} {row.registers:8} {row.shared:7} {row.stack:5} {row.seconds:7.1f}  "
        + f"{row.kernel} {row.constants}".rstrip()
    )


if __name__ == "__main__":
    sys.exit(main())
