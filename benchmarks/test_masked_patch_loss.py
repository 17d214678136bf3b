"""masked_patch_loss at pre-training shapes, forward and gradient, every implementation that runs here side by side."""

import pytest
import torch

import avfmae_kernels as K
from avfmae_kernels.dispatch import why_not

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BATCH = 256 if DEVICE == "cuda" else 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("implementation", ["reference", "cpp", "cuda", "triton"])
def test_masked_patch_loss(benchmark, implementation, dtype):
    if reason := why_not("masked_patch_loss", implementation, DEVICE):
        pytest.skip(reason)
    video = torch.randint(0, 256, (BATCH, 16, 160, 160, 3), dtype=torch.uint8, device=DEVICE)
    index = torch.stack([torch.randperm(800)[:400] for _ in range(BATCH)]).to(DEVICE)
    pred = torch.randn(BATCH, 400, 1536, device=DEVICE, dtype=dtype, requires_grad=True)
    weight = torch.full((BATCH, 400), 1 / (BATCH * 400), device=DEVICE)

    def run():
        pred.grad = None
        K.masked_patch_loss(pred, video, index, weight, (2, 16, 16)).backward()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    with K.use(implementation):
        benchmark(run)
    moved = pred.numel() * (2 + 3 * pred.element_size())  # the tubelets twice, the predictions twice, the slopes once
    benchmark.extra_info["GB/s"] = moved / benchmark.stats["median"] / 1e9
