"""Two steps of the tiny model on a batch that torchrun's processes share: losses, weights and gradients, written to a file.

Arguments: the file, ``ddp`` or ``fsdp``, the precision, how many micro-batches, and what is recomputed.
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

CLIPS = 8


def clips(cfg, start, stop):
    """Clips start to stop of the batch, with their masks."""
    g = torch.Generator().manual_seed(1)
    video = torch.randint(0, 256, (CLIPS, *cfg.video.size, 3), dtype=torch.uint8, generator=g)
    audio = torch.randn(CLIPS, 1, 256, 128, generator=g)
    masks = avfmae.DualMask.for_clips(cfg, np.arange(start, stop), seed=3, epoch=0)
    return Batch(video[start:stop], audio[start:stop], None, masks, list(range(start, stop)))


if __name__ == "__main__":
    path, parallel, precision, micro_batches, recompute = sys.argv[1:]
    with processes() as at:
        torch.manual_seed(0)
        # masks of the released kind score unequal numbers of tokens
        cfg = avfmae.ModelConfig.preset("tiny").replace(region_mode="released", recompute=recompute)
        model, count = avfmae.AVFMAEForPretraining(cfg), int(micro_batches)
        optim = OptimConfig(lr=1e-2, clip_grad=1.0, ema=0.9, layer_decay=0.9)
        step = TrainingStep(model, pretraining_loss, optim, 100, 10, count, precision, parallel=parallel)
        size = CLIPS // (at.world * count)
        mine = [clips(cfg, k * size, (k + 1) * size) for k in range(at.rank * count, (at.rank + 1) * count)]
        gradients, find = {}, step.params.drop_grads

        def keep():
            grads = {n: step.params.of[p].grad for n, p in model.named_parameters()}
            got = {n: getattr(g, "full_tensor", lambda g=g: g)().float().clone() for n, g in grads.items() if g is not None}
            gradients.update(
                got
            )  # the last that are dropped are the step's; before, DistributedDataParallel's rehearsal has some
            find()

        step.params.drop_grads = find
        values = []
        for number in range(3):
            step.params.drop_grads = keep if number == 0 else find
            values.append({name: float(value) for name, value in step(mine).items()})
        whole = [step.shared.whole(p).state_dict() for p in (None, step.averaged)]
        if at.is_main:
            weights, averaged = ({n: t.clone() for n, t in state.items()} for state in whole)
            torch.save({"values": values, "gradients": gradients, "weights": weights, "averaged": averaged}, path)
