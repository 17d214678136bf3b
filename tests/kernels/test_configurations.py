"""Every configuration that autotuning may pick gives the right answer and gradients, not only the one that it picks here."""

from pathlib import Path

import pytest
import torch
from backends import GPU, interpret

CASES = """
import torch
import test_add_layer_norm, test_assemble_tokens, test_cross_attention, test_gated_sum, test_gather_patches,
test_masked_patch_loss
import test_region_attention
from avfmae_kernels.triton_tools import configuration, recorded

def every(most, dtypes, device):
    for number in range(most):
        with configuration(number):
            for dtype in dtypes:
                for shape in ((5, 11, 2, 64), (9, 4, 1, 64), (3, 8, 2, 64), (5, 2, 1, 64), (2, 17, 1, 64), (2, 33, 1, 80), (1,
                101, 1, 64)):
                    test_region_attention.check_shape("triton", shape, dtype, device)
                for shape in ((2, 80, 8, 1, 64), (1, 8, 80, 2, 64), (1, 150, 24, 1, 64), (1, 24, 150, 1, 80), (1, 90, 80, 1, 64)):
                    test_cross_attention.check_shape("triton", shape, dtype, device)
                test_add_layer_norm.check_shape("triton", (3, 5, 640), dtype, device)
                test_add_layer_norm.check_slots("triton", dtype, device)
                test_gated_sum.check_shape("triton", (3, 640), dtype, device)
                test_assemble_tokens.check_shape("triton", (2, 3, 4, 9, 384), dtype, device)
                test_masked_patch_loss.check("triton", ((1, 4, 32, 32, 3), (2, 16, 16), 5), dtype, device)
"""


def test_the_cases_can_be_imported(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    exec(CASES, {})


def test_in_the_interpreter():
    interpret(CASES + 'every(3, [torch.float32], "cpu")\nprint("proven")')


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("gpu", [pytest.param("cuda", marks=GPU)])
def test_on_the_gpu(gpu, dtype, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    scope = {}
    exec(CASES, scope)
    scope["every"](6, [dtype], gpu)
