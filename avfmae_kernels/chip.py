"""What a GPU's generation allows: asked before an implementation is chosen, since a launch that asks for more only fails.

Nothing here needs a GPU.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from avfmae_kernels.arguments import fits_a_tile

OLDEST = 80  # bfloat16 on the tensor cores, and asynchronous copies
# KiB of shared memory that one block may ask for, by compute capability (CUDA C++ programming guide)
SHARED_KIB = {80: 163, 86: 99, 87: 163, 88: 99, 89: 99, 90: 227, 100: 227, 103: 227, 110: 227, 120: 99, 121: 99}
BOXES = "it reads no boxes"
SMALLEST = 16  # rows and columns of a product on the tensor cores
MASKED_PATCH_LOSS_OWN = 96
LEAST_KIB = 99  # of every chip from sm_80 on: what is assumed of one that is not in the table


def shared_memory(capability: int) -> int:
    """Bytes of shared memory that a block may ask for on a chip of this compute capability (90 for 9.0)."""
    return SHARED_KIB.get(capability, LEAST_KIB) * 1024


def compute_capability(index: int | None) -> int:
    """Of a CUDA device (None: the current one), as one number: 90 for 9.0."""
    return _asked(index)


# As torch.compiler.assume_constant_result does it, which imports the whole compiler: 77 MB a process
vars(compute_capability)["_dynamo_marked_constant"] = True


@functools.cache
def _asked(index: int | None) -> int:
    if not torch.cuda.is_available():  # tensors without memory, which are traced as for the oldest
        return OLDEST
    major, minor = torch.cuda.get_device_capability(index)
    return 10 * major + minor


def why_not(op: str, implementation: str, capability: int, args: tuple = ()) -> str | None:
    """None if a chip can run an implementation of an op on these arguments, else the reason why not.

    Args:
        implementation: ``"cuda"`` or ``"triton"``; any other runs on every chip.
        args: the op's arguments; empty asks about the chip alone.
    """
    if implementation not in ("cuda", "triton"):
        return None
    if capability < OLDEST:
        return f"needs compute capability {OLDEST / 10} or later, and this GPU has {capability / 10}"
    forward, backward = op.removesuffix("_backward"), op.endswith("_backward")
    if not args or (implementation, forward) not in NEEDS:
        return None
    needs = NEEDS[implementation, forward](backward, *args[backward:])  # a backward's arguments follow its gradient
    if isinstance(needs, str):
        return needs or None
    if needs <= (limit := shared_memory(capability)):
        return None
    return (
        f"needs {-(-needs // 1024)} KiB of shared memory a block at this shape, and compute capability "
        f"{capability / 10} has {limit // 1024}"
    )


def _cuda_region_attention(backward: bool, qkv: Tensor, heads: int, *rest) -> int:
    """As ``Shape::bytes`` and ``launch`` of ``csrc/cuda/region_attention.cu``: tiles for the tensor cores, or plain logits."""
    S, D, matrices = qkv.shape[1], qkv.shape[2] // 3 // heads, 3 + backward
    if _warps_attend(S, D, qkv):
        return 0
    if qkv.dtype == torch.float32 or D % 16 or D > 80 or not _by_16_bytes(qkv):
        return S * S * 4 * (matrices - 2)
    tile = 16 if S <= 16 else 32 if S <= 32 else 64 if S <= 64 else 128
    a_head = matrices * tile * (D + 8) * 2 + tile * (tile + 4) * 4 + tile // 16 * 1024
    return a_head * max(1, 64 // tile)


def _cuda_cross_attention(backward: bool, q: Tensor, kv: Tensor, heads: int, *rest) -> str:
    if _warps_attend(min(q.shape[1], kv.shape[1]), q.shape[2] // heads, q, kv):
        return ""
    return "it takes 16-bit numbers, heads of 32 or 64 columns, at most 16 rows of one side, and rows at multiples of 16 bytes"


def _warps_attend(few: int, head_size: int, *inputs: Tensor) -> bool:
    """As ``attend_by_warps`` of ``csrc/cuda/warp_attention.cuh``."""
    return few <= 16 and head_size in (32, 64) and all(t.dtype != torch.float32 and _by_16_bytes(t) for t in inputs)


def _by_16_bytes(x: Tensor) -> bool:
    """Whether rows of 16-bit numbers begin at multiples of 16 bytes; a compiler cannot ask where, and the launch checks again."""
    aligned = torch.compiler.is_compiling() or x.storage_offset() % 8 == 0
    return aligned and not x.stride(0) % 8 and not x.stride(1) % 8


def _cuda_adamw(backward: bool, *args) -> str:
    return "" if args[-1] is None else "it does not add up squares"


def _cuda_masked_patch_loss(backward: bool, pred: Tensor, *rest) -> int:
    """A tubelet's numbers in float32, and the kernel's own arrays (``kOwnShared`` of ``csrc/cuda/masked_patch_loss.cu``)."""
    return pred.shape[2] * 4 + MASKED_PATCH_LOSS_OWN


def _triton_gather_patches(backward: bool, *args) -> str:
    return "" if args[6] is None else BOXES


def _triton_masked_patch_loss(backward: bool, *args) -> str:
    return "" if args[5] is None else BOXES


def _triton_region_attention(backward: bool, qkv: Tensor, heads: int, *rest) -> str:
    return _fits_registers(qkv.shape[1], qkv.shape[2] // 3 // heads, qkv.dtype)


def _triton_cross_attention(backward: bool, q: Tensor, kv: Tensor, heads: int, *rest) -> str:
    return _fits_registers(min(q.shape[1], kv.shape[1]), q.shape[2] // heads, q.dtype)


def _fits_registers(rows: int, head_size: int, dtype: torch.dtype) -> str:
    """Nothing where Triton holds this many rows of a head without spilling (``avfmae_benchmarks.aot`` tells).

    Products of float32 numbers take them in two parts, and a backward has four such tiles. A forward of 64 such rows compiles,
    but reads outside its shared memory (Triton 3.6 on an H200, found by compute-sanitizer).
    """
    if dtype == torch.float32:
        fits = fits_a_tile(4 * max(rows, SMALLEST), max(head_size, SMALLEST))
    else:
        fits = fits_a_tile(rows, head_size)
    return "" if fits else "its tiles do not fit the registers at this shape and dtype"


# Of what not every chip or no chip can run: bytes of shared memory a block, or in words what stands against it, "" for nothing
NEEDS: dict[tuple[str, str], Callable[..., int | str]] = {
    ("cuda", "region_attention"): _cuda_region_attention,
    ("cuda", "cross_attention"): _cuda_cross_attention,
    ("cuda", "adamw"): _cuda_adamw,
    ("cuda", "masked_patch_loss"): _cuda_masked_patch_loss,
    ("triton", "gather_patches"): _triton_gather_patches,
    ("triton", "masked_patch_loss"): _triton_masked_patch_loss,
    ("triton", "region_attention"): _triton_region_attention,
    ("triton", "cross_attention"): _triton_cross_attention,
}
