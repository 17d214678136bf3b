"""What ops ask of their arguments, in words for the user; the same for every implementation."""

import torch

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


def check_floats(**tensors: torch.Tensor) -> None:
    """All tensors of one device and one of the dtypes that kernels compute in, their columns side by side; else ValueError."""
    first_name, first = next(iter(tensors.items()))
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS or tensor.dtype != first.dtype:
            expected = "torch.float32, torch.bfloat16 or torch.float16" if tensor is first else f"{first.dtype} like {first_name}"
            raise ValueError(f"{name}: got {tensor.dtype}, expected {expected}")
        if tensor.device != first.device:
            raise ValueError(f"{name}: is on {tensor.device}, expected {first.device} like {first_name}")
        if tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
            raise ValueError(f"{name}: its last dimension has stride {tensor.stride(-1)}, expected 1 (call .contiguous() first)")


def check_attention(num_heads: int, width: int, **tensors: torch.Tensor) -> None:
    """What region_attention and cross_attention ask of their heads and tensors; ValueError where it does not hold."""
    if num_heads < 1 or width < 1 or width % num_heads or width // num_heads > 128:
        raise ValueError(f"num_heads: got {num_heads}, expected a divisor of the width {width} that leaves heads of at most 128")
    check_floats(**tensors)
