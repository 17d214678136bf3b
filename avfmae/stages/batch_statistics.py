"""Batch statistics of the fusion, measured on the training clips where no supervised stage has learnt them.

Those of masked pre-training belong to a joint feature of one token, the mean of all visible ones. With labels the joint feature
has a token for each region, which pre-training's statistics do not normalise.
"""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from avfmae.data.batch import Batch
from avfmae.models.finetuning import AVFMAEForFinetuning
from avfmae.models.iavcl import BatchNorm
from avfmae.world import world_size

CLIPS = 256  # that are measured, at most


def batch_norms(model: torch.nn.Module) -> list[BatchNorm]:
    return [module for module in model.modules() if isinstance(module, BatchNorm)]


@torch.no_grad()
def measure_batch_norm(model: AVFMAEForFinetuning, batches: Iterable[Batch]) -> None:
    """Running statistics of every batch norm become the means over these batches. RuntimeError: there are none."""
    norms = batch_norms(model)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum, norm.frozen = None, False  # None: torch averages over all batches
    model.eval()  # no stochastic depth
    for norm in norms:
        norm.train()
    measured = False
    for batch in batches:
        model(batch.video, batch.audio)
        measured = True
    if not measured:
        raise RuntimeError("none of the training clips that batch statistics are measured on can be read")
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    share(tensor for norm in norms for tensor in norm.buffers())


def share(tensors: Iterable[Tensor]) -> None:
    """Every process gets the first one's."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)
