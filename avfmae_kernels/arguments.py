"""What ops ask of their arguments, in words for the user; the same for every implementation."""

from collections.abc import Sequence

import torch

from avfmae_kernels.device import kind

TILE = 128  # rows that one tile of the attention kernels holds on a GPU; a CPU takes any number


def fits_a_tile(length: int, head_size: int) -> bool:
    """Whether a GPU's registers hold the keys and values (or queries) of ``length`` rows, and their gradients, without spilling.

    Attention with more of both sides is better left to ``scaled_dot_product_attention``.
    """
    rows, columns = 1 << (length - 1).bit_length(), 1 << (head_size - 1).bit_length()
    return length <= TILE and rows * columns <= TILE * 64


FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """What references compute in: float32, or float64 where it is given."""
    return x if x.dtype == torch.float64 else x.float()


def check_shape(name: str, tensor: torch.Tensor, shape: Sequence[int | str], *dtypes: torch.dtype, like: str = "") -> None:
    """ValueError unless a tensor has this shape, where a letter stands for any size, and one of the dtypes if some are given."""
    fits = tensor.ndim == len(shape) and all(
        isinstance(want, str) or n == want for n, want in zip(tensor.shape, shape, strict=True)
    )
    if fits and (not dtypes or tensor.dtype in dtypes):
        return
    got, expected = (f"{tensor.dtype} ", f"{' or '.join(map(str, dtypes))} ") if dtypes else ("", "")
    sizes = str(tuple(shape)).replace("'", "")
    raise ValueError(f"{name}: got {got}{tuple(tensor.shape)}, expected {expected}{sizes}" + (f" like {like}" if like else ""))


def check_devices(**tensors: torch.Tensor | None) -> None:
    """ValueError unless all tensors are on the device of the first."""
    (first, expected), *others = [(name, tensor.device) for name, tensor in tensors.items() if tensor is not None]
    for name, device in others:
        if device != expected:
            raise ValueError(f"{name}: is on {device}, expected {expected} like {first}")


def check_range(name: str, index: torch.Tensor, count: int) -> None:
    """IndexError unless indices are 0 to count - 1. Only asked on a CPU: it would stall a GPU, whose kernels give NaN instead."""
    if kind(index.device) == "cpu" and not torch.compiler.is_compiling() and index.numel():
        low, high = index.aminmax()
        if low < 0 or high >= count:
            raise IndexError(f"{name}: holds {int(low)} to {int(high)}, expected 0 to {count - 1}")


def check_floats(**tensors: torch.Tensor) -> None:
    """All tensors of one device and one of the dtypes that kernels compute in, their columns side by side; else ValueError."""
    check_devices(**tensors)
    first_name, first = next(iter(tensors.items()))
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS or tensor.dtype != first.dtype:
            expected = "torch.float32, torch.bfloat16 or torch.float16" if tensor is first else f"{first.dtype} like {first_name}"
            raise ValueError(f"{name}: got {tensor.dtype}, expected {expected}")
        if tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
            raise ValueError(f"{name}: its last dimension has stride {tensor.stride(-1)}, expected 1 (call .contiguous() first)")


def check_attention(num_heads: int, width: int, **tensors: torch.Tensor) -> None:
    """What region_attention and cross_attention ask of their heads and tensors; ValueError where it does not hold."""
    if num_heads < 1 or width < 1 or width % num_heads or width // num_heads > 128:
        raise ValueError(f"num_heads: got {num_heads}, expected a divisor of the width {width} that leaves heads of at most 128")
    check_floats(**tensors)
