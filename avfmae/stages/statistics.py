"""What a supervised stage measures on its training clips before the first step, where no supervised stage has learnt it.

Masked pre-training leaves two things that mislead fine-tuning. The fusion's batch statistics belong to a joint feature of one
token, the mean of all visible ones; with labels it has a token for each region. And the pooled features of all clips are nearly
the same vector: after a short pre-training of the tiny model their part in common has a norm of 11.3 and their spread over clips
one of 0.2 (of freshly drawn weights: 10.5 and 4.3). A linear head on that sees a constant, and answers one class for every clip.
"""

from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from avfmae.data.batch import Batch
from avfmae.models.finetuning import AVFMAEForFinetuning
from avfmae.models.iavcl import BatchNorm

CLIPS = 256  # that are measured, at most


def batch_norms(model: torch.nn.Module) -> list[BatchNorm]:
    return [module for module in model.modules() if isinstance(module, BatchNorm)]


@torch.no_grad()
def measure_batch_norm(model: AVFMAEForFinetuning, batches: Iterable[Batch]) -> None:
    """Running statistics of every batch norm become the means over these batches."""
    norms = batch_norms(model)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum, norm.frozen = None, False  # None: torch averages over all batches
    model.eval()  # no stochastic depth
    for norm in norms:
        norm.train()
    for _ in features(model, batches):
        pass
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    share(tensor for norm in norms for tensor in norm.buffers())


@torch.no_grad()
def standardise_head(model: AVFMAEForFinetuning, batches: Iterable[Batch]) -> None:
    """The head's norm starts such that each feature has mean 0 and spread 1 over these batches' clips.

    Gains 1/σ and offsets −μ/σ of LayerNorm's own, still trained: a data-dependent start (Salimans and Kingma, 2016), and what MAE
    (He et al., 2022) puts a batch norm before its linear probe for.
    """
    model.eval()
    norm = model.head_norm
    norm.reset_parameters()
    values = torch.cat(list(features(model, batches)))
    spread, mean = torch.std_mean(values, dim=0)
    spread = spread.clamp(min=1e-6)
    norm.weight.copy_(1 / spread)
    norm.bias.copy_(-mean / spread)
    share([norm.weight, norm.bias])


def features(model: AVFMAEForFinetuning, batches: Iterable[Batch]) -> Iterator[Tensor]:
    """(B, C or 2C) float32 of each batch."""
    for batch in batches:
        yield model(batch.video, batch.audio).features.float()


def share(tensors: Iterable[Tensor]) -> None:
    """Every process gets the first one's."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)
