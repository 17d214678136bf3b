"""Steps of the tiny model on a batch that torchrun's processes share, written to a file: their values, gradients and weights.

Arguments: the file, and for each run ``ddp`` or ``fsdp``, the precision, how many micro-batches, and what is recomputed, as
``ddp,float32,1,none``.
"""

import sys

import numpy as np
import torch

import avfmae
from avfmae.data.batch import Batch
from avfmae.tasks.reconstruction import pretraining_loss
from avfmae.training.config import OptimConfig
from avfmae.training.dist import processes
from avfmae.training.step import TrainingStep

CLIPS, STEPS = 8, 3


def clips(cfg, start, stop):
    """Clips start to stop of the batch, with their masks."""
    g = torch.Generator().manual_seed(1)
    video = torch.randint(0, 256, (CLIPS, *cfg.video.size, 3), dtype=torch.uint8, generator=g)
    audio = torch.randn(CLIPS, 1, 256, 128, generator=g)
    masks = avfmae.DualMask.for_clips(cfg, np.arange(start, stop), seed=3, epoch=0)
    return Batch(video[start:stop], audio[start:stop], None, masks, list(range(start, stop)))


def run(at, parallel, precision, micro_batches, recompute):
    torch.manual_seed(0)
    # masks of the released kind score unequal numbers of tokens
    cfg = avfmae.ModelConfig.preset("tiny").replace(region_mode="released", recompute=recompute)
    model, count = avfmae.AVFMAEForPretraining(cfg), int(micro_batches)
    optim = OptimConfig(lr=1e-2, clip_grad=1.0, ema=0.9, layer_decay=0.9)
    step = TrainingStep(model, pretraining_loss, optim, 100, 10, count, precision, parallel=parallel)
    size = CLIPS // (at.world * count)
    mine = [clips(cfg, k * size, (k + 1) * size) for k in range(at.rank * count, (at.rank + 1) * count)]
    step.begin()
    step.backward(mine)
    grads = {n: step.params.of[p].grad for n, p in model.named_parameters()}
    gradients = {n: getattr(g, "full_tensor", lambda g=g: g)().clone() for n, g in grads.items() if g is not None}
    values = [{name: float(value) for name, value in step(mine).items()} for _ in range(STEPS)]
    held = sum(getattr(p, "to_local", lambda p=p: p)().numel() for p in model.parameters())
    states = [step.shared.whole(params).state_dict() for params in (None, step.averaged)]
    weights, averaged = ({n: t.clone() for n, t in state.items()} for state in states)
    found = {"gradients": gradients, "weights": weights, "averaged": averaged}
    scored = [int(n) for batch in mine for n in batch.masks.audio.scored.sum(1)]
    return found | {"values": values, "held": held, "scored": at.gather(scored)}


if __name__ == "__main__":
    path, *runs = sys.argv[1:]
    with processes() as at:
        found = {settings: run(at, *settings.split(",")) for settings in runs}
        if at.is_main:
            torch.save(found, path)
