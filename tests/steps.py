"""Training steps of the tiny model on random clips."""

import torch

import avfmae
from avfmae.data.batch import Batch
from avfmae.tasks.reconstruction import pretraining_loss
from avfmae.training.config import OptimConfig
from avfmae.training.step import TrainingStep

TINY = avfmae.ModelConfig.preset("tiny")


def written(step):
    """All that a step changes: weights, buffers, moments and averages, copied."""
    moments = [t for s in step.optimizer.state.values() for t in s.values()]
    return [t.clone() for t in (*step.model.state_dict().values(), *moments, *step.averaged)]


def small(precision="float32", micro_batches=1, **optim):
    torch.manual_seed(0)
    model = avfmae.AVFMAEForPretraining(TINY)
    step = TrainingStep(model, pretraining_loss, OptimConfig(**optim), 100, 10, micro_batches, precision)
    return model, step


def random_batch(seed=0, size=4):
    g = torch.Generator().manual_seed(seed)
    video = torch.randint(0, 256, (size, *TINY.video.size, 3), dtype=torch.uint8, generator=g)
    return Batch(
        video, torch.randn(size, 1, 256, 128, generator=g), None, avfmae.DualMask.sample(TINY, size, g), list(range(size))
    )
