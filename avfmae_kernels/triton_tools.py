"""What the Triton kernels share: matrix products, and the choice of tiles and warps.

Kernels are bare ``@triton.jit`` functions, so that they run in the interpreter and compile without a GPU; tuning is a second
object over them. Under the interpreter, and where AVFMAE_AUTOTUNE=0, the first configuration is used. On a GPU the
configurations are timed once per kernel, constants and dtypes, and Triton keeps the choice in its cache (TRITON_CACHE_DIR).
"""

import functools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
OPTIONS = ("num_warps", "num_stages")  # of a configuration; the rest are constants of the kernel
AUTOTUNE = os.environ.get("AVFMAE_AUTOTUNE", "1") != "0" and not INTERPRETED


def tile_of(n: int) -> int:
    """The tile that holds n rows or columns: a power of two, and no less than the tensor cores' 16."""
    return max(16, triton.next_power_of_2(n))


def registers(head_size: int, dtype: torch.dtype) -> int:
    """How many times the registers of heads of 64 in 16 bits a tile of rows takes, and so how many times the warps."""
    return max(1, tile_of(head_size) // 64) * (2 if dtype == torch.float32 else 1)


@triton.jit
def _tf32(x):
    """float32 rounded to the tensor cores' 11 bits."""
    return ((x.to(tl.uint32, bitcast=True) + 0x1000) & 0xFFFFE000).to(tl.float32, bitcast=True)


@triton.jit
def _interpreted_dot(a, b):
    """What the tensor cores make of a product, for the interpreter; never compiled."""
    if b.dtype != tl.float32:  # the interpreter would multiply the bit patterns of bfloat16 numbers
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    a_high, b_high = _tf32(a), _tf32(b)
    a_low, b_low = _tf32(a - a_high), _tf32(b - b_high)
    low = tl.dot(a_low, b_high, input_precision="ieee") + tl.dot(a_high, b_low, input_precision="ieee")
    return low + tl.dot(a_high, b_high, input_precision="ieee")


@triton.jit
def dot(a, b):
    """a b on the tensor cores with sums in float32, at least 16 rows and columns; a is rounded to b's dtype.

    float32 numbers are split in two of 11 bits each, which makes three products ("tf32x3") and an error of some 2^-22. Exact
    products would be left to the ordinary cores, which unroll them into minutes of compilation.
    """
    if INTERPRETED:
        return _interpreted_dot(a, b)
    return tl.dot(a.to(b.dtype), b, input_precision="tf32x3")


@triton.jit
def bound(n):
    """n as the bound of a loop. Triton 3.6's interpreter makes an array of it, which NumPy 2.4 no longer takes for an integer."""
    if INTERPRETED:
        return n.handle.data.item()
    return n


@triton.jit
def rounded(x, pointer):
    """float32 numbers in the pointer's dtype, rounded to nearest even."""
    if INTERPRETED and pointer.dtype.scalar.element_ty == tl.bfloat16:  # which would cut the bits off
        bits = x.to(tl.uint32, bitcast=True)
        x = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).to(tl.float32, bitcast=True)
    return x.to(pointer.dtype.scalar.element_ty)


@triton.jit
def store(pointer, x, mask):
    tl.store(pointer, rounded(x, pointer), mask=mask)


@functools.cache
def _say_that_kernels_are_timed() -> None:
    text = "the first step compiles and times each kernel's configurations (AVFMAE_AUTOTUNE=0 takes the first of them)"
    print(f"avfmae_kernels: {text}", file=sys.stderr, flush=True)


@functools.cache
def _autotuned(kernel, configurations: tuple):
    """One autotuner for a kernel and its choices; its key is whatever the kernel is specialised by."""
    choices = [
        triton.Config({k: v for k, v in c if k not in OPTIONS}, **{k: v for k, v in c if k in OPTIONS}) for c in configurations
    ]
    tuned = {name for c in configurations for name, _ in c}
    key = [p.name for p in kernel.params if p.is_constexpr and p.name not in tuned]
    return triton.autotune(choices, key=key, cache_results=True)(kernel)


@dataclass
class Launch:
    """A kernel, its arguments, and the configurations that it may run with."""

    kernel: triton.JITFunction
    configurations: list[dict]
    args: tuple
    constants: dict


_recorded: list[Launch] | None = None
forced: int | None = None  # for tests: kernels run with the configuration of this number, modulo how many they have


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Inside, launches are noted down instead of made; tensors may be of the meta device. For compiling without a GPU."""
    global _recorded
    _recorded = []
    try:
        yield _recorded
    finally:
        _recorded = None


def launch(kernel: triton.JITFunction, grid: tuple | Callable, configurations: list[dict], *args, **constants) -> None:
    """Runs a kernel with the best of its configurations. Run once before capturing a CUDA graph: timing cannot be captured.

    Args:
        grid: the programs, or a function of the kernel's constants that gives them.
        configurations: constants and ``num_warps``; all are valid, the first is used untuned.
        args, constants: the kernel's arguments, and those of its constants that are no matter of choice.
    """
    if _recorded is not None:
        _recorded.append(Launch(kernel, configurations, args, constants))
    elif AUTOTUNE and forced is None and len(configurations) > 1:
        _say_that_kernels_are_timed()
        _autotuned(kernel, tuple(tuple(c.items()) for c in configurations))[grid](*args, **constants)
    else:
        kernel[grid](*args, **constants, **configurations[(forced or 0) % len(configurations)])
