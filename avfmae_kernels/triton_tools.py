"""What the Triton kernels share: matrix products, and the choice of tiles and warps.

Kernels are bare ``@triton.jit`` functions, so that they run in the interpreter and compile without a GPU; tuning is a second
object over them. Under the interpreter, and where AVFMAE_AUTOTUNE=0, the first configuration is used. On a GPU the
configurations are timed once per kernel, constants and dtypes, and the choice is kept for the process.
"""

import functools
import os

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
AUTOTUNE = os.environ.get("AVFMAE_AUTOTUNE", "1") != "0" and not INTERPRETED


@triton.jit
def dot(a, b):
    """a b with sums in float32, on the tensor cores where b is of 16 bits (a is rounded to b's dtype); 16 rows and columns at least."""
    if INTERPRETED:  # which would multiply the bit patterns of bfloat16 numbers
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    return tl.dot(a.to(b.dtype), b, input_precision="ieee")


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
def _autotuned(kernel, configurations: tuple):
    """One autotuner for a kernel and its choices; its key is whatever the kernel is specialised by."""
    choices = [
        triton.Config({k: v for k, v in c if k not in ("num_warps", "num_stages")}, **{k: v for k, v in c if k in ("num_warps", "num_stages")})
        for c in configurations
    ]
    tuned = {name for c in configurations for name, _ in c}
    key = [p.name for p in kernel.params if p.is_constexpr and p.name not in tuned]
    return triton.autotune(choices, key=key)(kernel)


class _First:
    """The kernel with its first configuration, callable as the autotuned one is."""

    def __init__(self, kernel, configuration: dict):
        self.kernel, self.configuration = kernel, configuration

    def __getitem__(self, grid):
        def run(*args, **kwargs):
            return self.kernel[grid](*args, **kwargs, **self.configuration)

        return run


def tuned(kernel, configurations: list[dict]):
    """``kernel`` with its launch choices made: ``tuned(kernel, configurations)[grid](*arguments)``.

    Args:
        kernel: a bare ``@triton.jit`` function.
        configurations: constants of the kernel and ``num_warps``, ``num_stages``; the grid may depend on them.
    """
    if not AUTOTUNE:
        return _First(kernel, configurations[0])
    return _autotuned(kernel, tuple(tuple(c.items()) for c in configurations))
