"""What the optimiser refuses before a run begins."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from avfmae.training.config import OptimConfig
from avfmae.training.optim import build_optimiser


def test_compact_moments_are_refused_on_a_gpu():
    """Tensors without memory stand in for a GPU's."""
    model = torch.nn.Module()
    with FakeTensorMode():
        model.weight = torch.nn.Parameter(torch.empty(2, 2, device="cuda"))
        with pytest.raises(ValueError, match=r"optim\.moments: got 'compact' on a GPU, expected 'float32' or 'auto'"):
            build_optimiser(model, OptimConfig(moments="compact"), compact=True)
