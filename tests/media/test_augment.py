"""Augmentation on tensors against Pillow's, operation by operation, on every device."""

import numpy as np
import pytest
import torch
from backends import DEVICES
from PIL import Image
from pillow_augment import RAND_AUGMENT

from avfmae.data import augment


def frames(kind):
    rng = np.random.default_rng(0)
    if kind == "noise":
        return rng.integers(0, 256, (2, 60, 50, 3), dtype=np.uint8)
    if kind == "one level":
        return np.full((2, 30, 40, 3), 77, np.uint8)
    y, x = np.mgrid[:64, :72]
    return np.stack([np.stack([60 + x + k, 2 * y + 20, 128 + 50 * np.sin((x + y) / 9 + k)], -1) for k in range(2)]).astype(
        np.uint8
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["noise", "smooth", "one level"])
@pytest.mark.parametrize("name", augment.OPERATIONS)
def test_is_pillows_to_within_a_level(name, kind, device):
    clip = frames(kind)
    for strength in (0.0, 3.3, 7.0, 10.0):
        for sign in (-1, 1):
            pillow = RAND_AUGMENT[name](strength, sign, clip.shape[2:0:-1])
            want = np.stack([np.asarray(pillow(Image.fromarray(f))) for f in clip]).astype(int)
            got = augment.OPERATIONS[name](torch.from_numpy(clip).to(device), strength / 10, sign * strength / 10).cpu().numpy()
            assert got.dtype == np.uint8 and np.abs(got - want).max() <= 1
