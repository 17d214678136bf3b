"""Every configuration that autotuning may pick gives the right answer and gradients, not only the one that it picks here."""

from unittest import mock

import pytest
import test_add_layer_norm
import test_assemble_tokens
import test_cross_attention
import test_gated_sum
import test_masked_patch_loss
import test_region_attention
import torch
from backends import GPU, INTERPRETED, require

ON_A_GPU = pytest.param("triton", "cuda", id="triton-gpu", marks=GPU)
REGIONS = ((5, 11, 2, 64), (9, 4, 1, 64), (3, 8, 2, 64), (5, 2, 1, 64), (2, 17, 1, 64), (2, 33, 1, 80), (1, 101, 1, 64))
PAIRS = ((2, 80, 8, 1, 64), (1, 8, 80, 2, 64), (1, 150, 24, 1, 64), (1, 24, 150, 1, 80), (1, 90, 80, 1, 64))
OPS = {
    "region_attention": [(test_region_attention.check_shape, shape) for shape in REGIONS],
    "cross_attention": [(test_cross_attention.check_shape, shape) for shape in PAIRS],
    "add_layer_norm": [(test_add_layer_norm.check_shape, (3, 5, 640)), (test_add_layer_norm.check_slots, (2, 3, 5, 48))],
    "gated_sum": [(test_gated_sum.check_shape, (3, 640))],
    "assemble_tokens": [(test_assemble_tokens.check_shape, (2, 3, 4, 9, 384))],
    "masked_patch_loss": [(test_masked_patch_loss.check, ((1, 4, 32, 32, 3), (2, 16, 16), 5))],
}


def check_configurations(op, implementation, device, count, dtype):
    from avfmae_kernels import triton_tools

    for number in range(count):
        with mock.patch.object(triton_tools, "forced", number):
            for check, shape in OPS[op]:
                check(implementation, shape, dtype, device)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("implementation", "device"), [INTERPRETED])
def test_in_the_interpreter(op, implementation, device):
    """In float32: without tensor cores, the configurations differ in how the loops are cut, whatever the dtype."""
    require(op, implementation, device)
    check_configurations(op, implementation, device, 3, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("implementation", "device"), [ON_A_GPU])
def test_on_the_gpu(op, implementation, device, dtype):
    check_configurations(op, implementation, device, 6, dtype)
