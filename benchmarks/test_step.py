"""One training step of HiCMAE-Base and of AVF-MAE++ Base: forward and backward, in float32, nothing compiled."""

import pytest
import torch

import avfmae

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BATCH = 32 if DEVICE == "cuda" else 4
MODELS = {"hicmae_base": avfmae.HiCMAEForPretraining, "base": avfmae.AVFMAEForPretraining}


@pytest.mark.parametrize("preset", MODELS)
def test_pretraining_step(benchmark, preset):
    cfg = avfmae.ModelConfig.preset(preset)
    model = MODELS[preset](cfg).to(DEVICE)
    video = torch.randint(0, 256, (BATCH, *cfg.video.size, 3), dtype=torch.uint8, device=DEVICE)
    audio = torch.randn(BATCH, 1, *cfg.audio.size, device=DEVICE)
    masks = avfmae.DualMask.sample(cfg, BATCH).to(DEVICE)

    def step():
        model.zero_grad()
        model(video, audio, masks).loss.backward()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark.pedantic(step, rounds=5, warmup_rounds=2)
    benchmark.extra_info["clips/s"] = BATCH / benchmark.stats["median"]
