"""Three steps of the tiny model on a batch that torchrun's processes share: losses, weights and gradients, written to files.

Arguments: a folder, the precision, how many micro-batches, what is recomputed, and the ways of sharing, ``ddp`` and ``fsdp``; the
folder gets a file of each.
"""

import sys
from pathlib import Path

import numpy as np
import torch

import avfmae
from avfmae.data.batch import Batch
from avfmae.tasks.reconstruction import pretraining_loss
from avfmae.training.config import OptimConfig
from avfmae.training.dist import processes
from avfmae.training.step import TrainingStep

CLIPS = 8


def clips(cfg, start, stop):
    """Clips start to stop of the batch, with their masks."""
    g = torch.Generator().manual_seed(1)
    video = torch.randint(0, 256, (CLIPS, *cfg.video.size, 3), dtype=torch.uint8, generator=g)
    audio = torch.randn(CLIPS, 1, 256, 128, generator=g)
    masks = avfmae.DualMask.for_clips(cfg, np.arange(start, stop), seed=3, epoch=0)
    return Batch(video[start:stop], audio[start:stop], None, masks, list(range(start, stop)))


def steps(at, parallel, precision, micro_batches, recompute):
    """Three steps: what is logged of each, the first one's gradients, and the last weights, of the whole model."""
    torch.manual_seed(0)
    # masks of the released kind score unequal numbers of tokens
    cfg = avfmae.ModelConfig.preset("tiny").replace(region_mode="released", recompute=recompute)
    model = avfmae.AVFMAEForPretraining(cfg)
    optim = OptimConfig(lr=1e-2, clip_grad=1.0, ema=0.9, layer_decay=0.9)
    step = TrainingStep(model, pretraining_loss, optim, 100, 10, micro_batches, precision, parallel=parallel)
    size = CLIPS // (at.world * micro_batches)
    mine = [clips(cfg, k * size, (k + 1) * size) for k in range(at.rank * micro_batches, (at.rank + 1) * micro_batches)]
    gradients, drop = {}, step.params.drop_grads

    def keep():
        """The last that are dropped are the step's; before them, a warm-up backward pass has some."""
        grads = {n: step.params.of[p].grad for n, p in model.named_parameters()}
        gradients.update(
            {n: getattr(g, "full_tensor", lambda g=g: g)().float().clone() for n, g in grads.items() if g is not None}
        )
        drop()

    values = []
    for number in range(3):
        step.params.drop_grads = drop if number else keep
        values.append({name: float(value) for name, value in step(mine).items()})
    weights, averaged = ({n: t.clone() for n, t in step.shared.full_model(p).state_dict().items()} for p in (None, step.averaged))
    return {"values": values, "gradients": gradients, "weights": weights, "averaged": averaged}


if __name__ == "__main__":
    folder, precision, micro_batches, recompute, *ways = sys.argv[1:]
    with processes() as at:
        for way in ways:
            found = steps(at, way, precision, int(micro_batches), recompute)
            if at.is_main:
                torch.save(found, Path(folder) / f"{way}.pt")
