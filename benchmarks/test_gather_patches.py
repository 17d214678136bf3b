"""gather_patches at pre-training shapes, every implementation that runs here side by side.

make bench                                                  # a table
pytest benchmarks --benchmark-save NAME                     # keep, then compare revisions:
pytest benchmarks --benchmark-compare NAME
"""

import pytest
import torch

import avfmae_kernels as K
from avfmae_kernels.dispatch import why_not

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BATCH = 256 if DEVICE == "cuda" else 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("implementation", ["reference", "cpp", "cuda", "triton"])
def test_gather_patches(benchmark, implementation, dtype):
    if reason := why_not("gather_patches", implementation, DEVICE):
        pytest.skip(reason)
    video = torch.randint(0, 256, (BATCH, 16, 160, 160, 3), dtype=torch.uint8, device=DEVICE)
    index = torch.stack([torch.randperm(800)[:80] for _ in range(BATCH)]).to(DEVICE)

    def run():
        out = K.gather_patches(video, index, dtype=dtype)
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        return out

    with K.use(implementation):
        out = benchmark(run)
    moved = index.numel() * 1536 * (1 + out.element_size())
    benchmark.extra_info["GB/s"] = moved / benchmark.stats["median"] / 1e9
