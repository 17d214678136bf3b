"""The deterministic weights and inputs that the golden numbers in tests/data belong to."""

import json
import zlib
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import avfmae_kernels as K

TOLERANCE = {torch.float32: (1e-4, 1e-3), torch.bfloat16: (2e-2, 2e-2)}  # of outputs and losses, and of gradient norms
DATA = Path(__file__).parent / "data"


def generator(text: str) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=zlib.crc32(text.encode())))


@lru_cache
def keys(model: str) -> list[tuple[str, list[int]]]:
    """Names and shapes of a released model, in order."""
    return json.loads((DATA / "released_keys.json").read_text())[model]


def is_buffer(name: str) -> bool:
    return name.endswith(("running_mean", "running_var", "num_batches_tracked"))


def weight(name: str, shape: list[int], salt: str = "a") -> Tensor:
    if name.endswith("num_batches_tracked"):
        return torch.tensor(0)
    numel = int(np.prod(shape))
    n = generator(f"{salt}:{name}").standard_normal(numel, dtype=np.float32).reshape(shape)
    if "lg_region_tokens" in name or "mask_token" in name or "layer_weights" in name:
        value = 0.5 * n
    elif name.endswith("running_var"):
        value = 1 + 0.1 * np.abs(n)
    elif name.endswith("running_mean"):
        value = 0.1 * n
    elif len(shape) == 1 and name.endswith("weight") and numel > 1:
        value = 1 + 0.1 * n
    elif len(shape) == 1 and numel == 1:
        value = 0.25 + 0.01 * n
    elif len(shape) == 1:
        value = 0.02 * n
    else:
        value = 0.9 * n / np.sqrt(numel / shape[0])
    return torch.from_numpy(np.asarray(value, np.float32))


def weights(model: str, salt: str = "a") -> dict[str, Tensor]:
    return {name: weight(name, shape, salt) for name, shape in keys(model)}


@lru_cache
def batch() -> tuple[Tensor, Tensor]:
    """Three clips: video uint8 (3, 16, 160, 160, 3), audio float32 (3, 1, 256, 128)."""
    g = generator("a:batch")
    base = torch.from_numpy(g.standard_normal((3, 3, 16, 20, 20), np.float32))
    big = torch.nn.functional.interpolate(base.flatten(0, 1), size=(160, 160), mode="bilinear").reshape(3, 3, 16, 160, 160)
    noise = torch.from_numpy(g.standard_normal((3, 3, 16, 160, 160), np.float32))
    video = (big * 50 + 128 + 6 * noise).clamp(0, 255).round().to(torch.uint8)
    audio = torch.from_numpy(0.5 * g.standard_normal((3, 1, 256, 128), np.float32))
    return video.permute(0, 2, 3, 4, 1), audio


def relative(a: Tensor, b: Tensor) -> float:
    """Relative L2 distance of a from b."""
    a, b = (torch.as_tensor(x).double().cpu() for x in (a, b))
    return float((a - b).norm() / b.norm())


@contextmanager
def computing(implementation: str, device: str, dtype: torch.dtype):
    """Inside, models compute with this implementation and in this dtype."""
    with K.use(implementation), torch.autocast(device, dtype, enabled=dtype != torch.float32):
        yield
