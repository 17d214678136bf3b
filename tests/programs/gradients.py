"""Writes the loss, gradients and batch statistics of one batch, shared by the processes that torchrun starts, to a file."""

import sys
from contextlib import nullcontext

import numpy as np
import torch

import avfmae
from avfmae.training.dist import GradientAverage, processes

if __name__ == "__main__":
    with processes() as at:
        torch.manual_seed(0)
        cfg = avfmae.ModelConfig.preset("tiny").replace(region_mode="released")  # masks score unequal numbers of tokens
        model = avfmae.AVFMAEForPretraining(cfg)
        average = GradientAverage(list(model.parameters())) if at.world > 1 else None
        g = torch.Generator().manual_seed(1)
        video = torch.randint(0, 256, (8, *cfg.video.size, 3), dtype=torch.uint8, generator=g)
        audio = torch.randn(8, 1, 256, 128, generator=g)
        mine = slice(at.rank * 8 // at.world, (at.rank + 1) * 8 // at.world)
        masks = avfmae.DualMask.for_clips(cfg, np.arange(8)[mine], seed=3, epoch=0)
        for _ in range(2):  # the second time, buckets leave during backward
            model.zero_grad()
            with average.during(True) if average else nullcontext():
                out = model(video[mine], audio[mine], masks)
                out.loss.backward()
        loss = at.sum([float(out.loss.detach()) / at.world])[0]
        if at.is_main:
            gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
            statistics = {n: b for n, b in model.named_buffers() if "running" in n}
            scored = masks.audio.scored.sum(1)
            torch.save({"loss": loss, "gradients": gradients, "statistics": statistics, "scored": scored}, sys.argv[1])
