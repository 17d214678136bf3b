"""An op in one file: what a new folder of avfmae_kernels must hold, without compiled kernels."""

from torch import Tensor

from avfmae_kernels.dispatch import call, register


def _reference(x: Tensor, factor: float) -> Tensor:
    return x * factor


register("toy_scale", "(Tensor x, float factor) -> Tensor", _reference, cpu_levels=())


def toy_scale(x: Tensor, factor: float) -> Tensor:
    """x scaled by a number."""
    return call("toy_scale", x.device, x, factor)
