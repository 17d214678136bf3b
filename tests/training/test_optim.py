"""What the optimiser refuses before a run begins."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from avfmae.training.config import OptimConfig
from avfmae.training.optim import build_optimiser


def test_compact_moments_are_refused_on_a_gpu():
    """Tensors without memory stand in for a GPU's."""
    with FakeTensorMode(), pytest.raises(ValueError, match=r"optim\.moments: got 'compact' on a GPU, expected 'float32' or 'auto'"):
        build_optimiser(torch.nn.Linear(2, 2, device="cuda"), OptimConfig(moments="compact"), compact=True)
