"""Compiles every kernel for chosen GPUs, on a machine that need not have one.

``python -m avfmae_kernels.aot --arch 80 90 100`` compiles each Triton kernel at every shape and configuration that the presets
use, and each CUDA source, and prints what they take of a multiprocessor. It fails on a spill, a stack frame, or more shared
memory than the chip has: what would be slow or would not launch is found before a GPU is.
"""

import argparse
import importlib
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

# KiB of shared memory that a block may ask for, by compute capability (CUDA C++ programming guide)
SHARED_LIMIT = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
# The presets: width and heads, sequences that attend to themselves, queries and keys. The video decoder's 480 tokens to
# themselves are scaled_dot_product_attention's.
ENCODERS = ((512, 8), (640, 10), (768, 12))
ENCODER_SEQUENCES = (2, 4, 8, 11, 17, 24, 80, 101)
ENCODER_PAIRS = ((80, 8), (24, 8), (800, 8), (128, 8), (8, 80), (8, 24), (8, 800), (8, 128), (80, 24), (24, 80))
DECODERS = ((384, 6), (512, 8), (640, 8))
DECODER_SEQUENCES = (88,)
DECODER_PAIRS = ((480, 80), (88, 24))
BATCH = 4  # no kernel is specialised by it


@dataclass(frozen=True)
class Row:
    """What a compiled kernel takes: registers a thread, bytes of stack a thread, bytes of shared memory a block."""

    kernel: str
    constants: str
    arch: int
    registers: int
    stack: int
    shared: int

    @property
    def fault(self) -> str:
        if self.stack:
            return f"{self.stack} bytes of stack: registers spill"
        if self.shared > SHARED_LIMIT.get(self.arch, 99) * 1024:
            return f"more than the {SHARED_LIMIT.get(self.arch, 99)} KiB of shared memory that sm_{self.arch} has"
        return ""


def record_launches() -> list:
    """All launches of the presets' pre-training and fine-tuning steps, noted down from tensors without memory."""
    from avfmae_kernels.add_layer_norm import triton as add_layer_norm
    from avfmae_kernels.arguments import fits_a_tile
    from avfmae_kernels.assemble_tokens import triton as assemble_tokens
    from avfmae_kernels.cross_attention import triton as cross_attention
    from avfmae_kernels.gated_sum import triton as gated_sum
    from avfmae_kernels.gather_patches import triton as gather_patches
    from avfmae_kernels.gelu_backward import triton as gelu_backward
    from avfmae_kernels.masked_patch_loss import triton as masked_patch_loss
    from avfmae_kernels.region_attention import triton as region_attention
    from avfmae_kernels.triton_tools import recorded

    def empty(*shape, dtype=torch.bfloat16):
        return torch.empty(shape, dtype=dtype, device="meta")

    wide, whole = torch.float32, torch.int64
    with recorded() as launches:
        encoders = [(*shape, ENCODER_SEQUENCES, ENCODER_PAIRS) for shape in ENCODERS]
        decoders = [(*shape, DECODER_SEQUENCES, DECODER_PAIRS) for shape in DECODERS]
        for C, heads, sequences, pairs in encoders + decoders:
            for S in (S for S in sequences if fits_a_tile(S, C // heads)):
                region_attention.region_attention(empty(BATCH, S, 3 * C), heads)
                region_attention.region_attention_backward(empty(BATCH, S, C), empty(BATCH, S, 3 * C), heads, True)
            for Nq, Nk in (pair for pair in pairs if fits_a_tile(min(pair), C // heads)):
                q, kv = empty(BATCH, Nq, C), empty(BATCH, Nk, 2 * C)
                cross_attention.cross_attention(q, kv, heads)
                cross_attention.cross_attention_backward(q, q, kv, heads, True)
            for stream in (torch.bfloat16, wide):
                x, branch, w, stats = (
                    empty(BATCH, 8, C, dtype=stream),
                    empty(BATCH, 8, C),
                    empty(C, dtype=stream),
                    empty(32, 2, dtype=wide),
                )
                add_layer_norm.add_layer_norm(x, branch, w, w, 1e-6, x, branch, stats)
                add_layer_norm.add_layer_norm(x, None, w, w, 1e-6, None, branch, stats)
                for slope in (None, branch):
                    parts = empty(2, 2, C, dtype=wide)
                    add_layer_norm.add_layer_norm_backward(x, branch, x, stats, w, w, x, slope, branch, parts)
                gated_sum.gated_sum(empty(32, C), empty(32, C, dtype=stream), empty(32, C), empty(32, C, dtype=stream))
                gated_sum.gated_sum_backward(
                    *(empty(32, C, dtype=d) for d in (stream, torch.bfloat16, stream, torch.bfloat16, stream))
                )
            gelu_backward.gelu_backward(empty(BATCH, 4 * C), empty(BATCH, 4 * C))
            index, table = empty(BATCH, 80, dtype=whole), empty(800, C, dtype=wide)
            assemble_tokens.assemble_tokens(
                empty(BATCH, 80, C), empty(C, dtype=wide), table, index, empty(BATCH, 400, dtype=whole), wide
            )
            assemble_tokens.assemble_tokens(empty(BATCH, 80, C), None, table, index, None, wide)
        clip, index = empty(BATCH, 16, 160, 160, 3, dtype=torch.uint8), empty(BATCH, 400, dtype=whole)
        stored = empty(BATCH, 16, 176, 176, 3, dtype=torch.uint8)  # of a prepared set, seen through boxes
        whole_clip, cropped = (None, None), (empty(BATCH, 4, dtype=wide), [160, 160])
        for frames, boxes in ((clip, whole_clip), (stored, cropped)):
            gather_patches.gather_patches(frames, index, [2, 16, 16], [0.5] * 3, [0.2] * 3, torch.bfloat16, *boxes)
        sound, few = empty(BATCH, 1, 256, 128, dtype=wide), empty(BATCH, 64, dtype=whole)
        video, audio = (index, [2, 16, 16], 1536), (few, [16, 16], 256)
        for source, (tokens, patch, numbers), boxes in ((clip, video, whole_clip), (stored, video, cropped), (sound, audio, whole_clip)):
            pred, scored = empty(*tokens.shape, numbers), empty(*tokens.shape, dtype=torch.bool)
            masked_patch_loss.masked_patch_loss(pred, source, tokens, scored, patch, *boxes)
            masked_patch_loss.masked_patch_loss_backward(
                empty(*tokens.shape, dtype=wide), pred, source, tokens, scored, patch, *boxes
            )
    return launches


NAMES = {
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float32: "fp32",
    torch.uint8: "u8",
    torch.int64: "i64",
    torch.bool: "i1",
}


def sources() -> dict[tuple, tuple]:
    """Every distinct (kernel, signature, constants, options) of the recorded launches, with what compiles it."""
    from avfmae_kernels.triton_tools import OPTIONS

    found = {}
    for launch in record_launches():
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
            found[key] = (
                launch.kernel.fn.__module__,
                launch.kernel.fn.__name__,
                signature,
                constants,
                divisible,
                options,
            )
    return found


def tool(name: str) -> str | None:
    """Path of a CUDA binary tool: the toolkit's, or the one that Triton brings along."""
    import triton

    bundled = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return shutil.which(name) or (str(bundled) if bundled.exists() else None)


def resources(cubin: Path) -> list[tuple[str, int, int, int]]:
    """Name, registers, stack and static shared memory of each kernel in a cubin."""
    text = subprocess.run([tool("cuobjdump"), "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
    rows = re.findall(r"Function (\S+?):?\n\s*REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", text)
    return [
        (name, int(registers), int(stack) + int(local), int(shared)) for name, registers, stack, shared, local in rows
    ]


def compile_triton(source: tuple, arch: int) -> Row:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module, name, signature, constants, divisible, options = source
    kernel = getattr(importlib.import_module(module), name)
    ast = ASTSource(kernel, signature, constexprs=constants, attrs=divisible)
    compiled = triton.compile(ast, target=GPUTarget("cuda", arch, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        ((_, registers, stack, static),) = resources(Path(file.name))
    words = [f"{k}={v}" for k, v in (constants | options).items()] + sorted(
        {s for s in signature.values() if s.startswith("*")}
    )
    return Row(name, " ".join(words), arch, registers, stack, max(static, compiled.metadata.shared))


def compile_cuda(source: Path, arch: int) -> list[Row]:
    """Rows of one CUDA file; its shared memory is the static part (the file asserts the rest itself)."""
    include = Path(sysconfig.get_path("platlib")) / "torch" / "include"
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernels.cubin"
        command = ["nvcc", "-cubin", source, "-o", cubin, f"-I{source.parents[1]}", f"-I{include}", "-O3", "-std=c++20", "-DUSE_CUDA",
                   "-DTORCH_TARGET_VERSION=0x020b000000000000", "-DTORCH_STABLE_ONLY", f"-arch=sm_{arch}"]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
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
        rows.append(Row(f"{source.name}: {kernel}", types, arch, registers, stack, shared))
    return rows


def rows(archs: list[int], jobs: int) -> Iterator[Row]:
    """Compiles everything; rows come as they are done."""
    cuda = sorted((Path(__file__).parents[1] / "csrc" / "cuda").glob("*.cu"))
    if shutil.which("nvcc") is None or not cuda:
        print("CUDA sources: not compiled, as there is no nvcc or no source tree", file=sys.stderr)
        cuda = []
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # what every release so far does
    with ProcessPoolExecutor(jobs) as pool:
        tasks = [pool.submit(compile_cuda, source, arch) for arch in archs for source in cuda]
        tasks += [pool.submit(compile_triton, source, arch) for arch in archs for source in sources().values()]
        for task in tasks:
            result = task.result()
            yield from result if isinstance(result, list) else [result]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", type=int, nargs="+", default=[90], help="compute capabilities, such as 80 90 100")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--quiet", action="store_true", help="only each kernel's largest figures")
    args = parser.parse_args()
    if tool("cuobjdump") is None:
        sys.exit("aot: cuobjdump was found neither in a CUDA toolkit nor in Triton; install either")
    print(f"{'arch':>5} {'registers':>9} {'shared':>7} {'stack':>5}  kernel")
    faults, done, worst = [], 0, {}
    for row in rows(args.arch, args.jobs):
        done += 1
        key = (row.arch, row.kernel)
        before = worst.get(key, row)
        worst[key] = Row(
            row.kernel,
            "",
            row.arch,
            *(max(getattr(row, f), getattr(before, f)) for f in ("registers", "stack", "shared")),
        )
        if not args.quiet:
            print(
                f"sm_{row.arch:<3} {row.registers:8} {row.shared:7} {row.stack:5}  {row.kernel} {row.constants}",
                flush=True,
            )
        if row.fault:
            faults.append(f"sm_{row.arch} {row.kernel} {row.constants}: {row.fault}")
    if args.quiet:
        for row in worst.values():
            print(f"sm_{row.arch:<3} {row.registers:8} {row.shared:7} {row.stack:5}  {row.kernel}")
    print(f"{done} kernels compiled for {', '.join(f'sm_{a}' for a in args.arch)}; {len(faults)} at fault")
    for fault in faults:
        print(f"  {fault}")
    return 1 if faults or not done else 0


if __name__ == "__main__":
    sys.exit(main())
