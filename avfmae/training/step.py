"""One optimizer step: forward, backward, averaging over processes, clipping, schedule, AdamW.

This is the plain step. Nothing in it reads a number back from the device. How it is executed, as a CUDA graph or in another way,
is an engine's business (:mod:`avfmae.engines`).
"""

from collections.abc import Callable, Hashable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

import avfmae_kernels as K
from avfmae.data.batch import Batch
from avfmae.training.config import OptimConfig
from avfmae.training.optim import build_optimizer, learning_rate
from avfmae.training.parallel import Parallel, local, set_up_parallel_loss, share
from avfmae.training.precision import ComputeParams, compute_dtype
from avfmae.world import world_size

# Gives a batch's loss and the parts of it that are logged. Its first argument computes what the model computes.
LossFunction = Callable[[Callable, Batch], tuple[Tensor, dict[str, Tensor]]]


class TrainingStep:
    """The step of a model under a loss: call it with the step's micro-batches.

    A step whose loss or gradient is not finite changes nothing but the counters.

    Args:
        model: on its device.
        loss: see LossFunction.
        optim: the recipe. steps, steps_per_epoch: of the whole run, for the schedule.
        micro_batches: of a step. With several, gradients add up in float32, and the weights have no copies in bfloat16.
        precision: ``"auto"``, ``"float32"`` or ``"bf16"``: what matrix products are computed in.
        forward: computes what the model computes, such as ``torch.compile(model)``; None: the model.
        parallel: how several processes share the model (:mod:`avfmae.training.parallel`).

    Attributes:
        number: steps done, a scalar on the device. skipped: those that were not finite; in_a_row: the latest of them without a
            good one in between.
        averaged: the running average of the parameters, in their order; empty if none is kept.
    """

    def __init__(
        self, model: nn.Module, loss: LossFunction, optim: OptimConfig, steps: int, steps_per_epoch: int,
        micro_batches: int = 1, precision: str = "auto", forward: Callable | None = None, parallel: Parallel = "ddp",
    ):  # fmt: skip
        self.model, self.loss, self.optim, self.forward = model.train(), loss, optim, model if forward is None else forward
        self.micro_batches, self.world = micro_batches, world_size()
        self.device = next(model.parameters()).device
        self.dtype = compute_dtype(precision, self.device)
        self.shared = share(model, parallel, self.dtype)
        if self.shared.casts and forward is not None:
            raise ValueError("compile: got True with parallel='fsdp', expected False")
        self.optimizer = build_optimizer(model, optim)
        copies = micro_batches == 1 and not self.shared.casts
        self.params = ComputeParams(model, self.dtype if copies else torch.float32)
        self.parallel_loss: Callable[[Batch], tuple[Tensor, dict[str, Tensor]]] | None = None  # wrapped in the first step
        self.batch_statistics = [b for m in model.modules() if isinstance(m, nn.BatchNorm1d) for b in m.buffers()]
        self.averaged = [p.detach().clone() for p in model.parameters()] if optim.ema else []
        rates = [learning_rate(s, steps_per_epoch, optim) for s in range(steps)]
        self.rates = torch.tensor(rates, device=self.device)
        self.number = torch.zeros((), dtype=torch.int64, device=self.device)
        self.skipped, self.in_a_row = (torch.zeros((), device=self.device) for _ in range(2))

    def __call__(self, batches: Sequence[Batch]) -> dict[str, Tensor]:
        """Does the step.

        Returns:
            Scalars on the device, which the next step may overwrite: the loss and its parts (means over micro-batches and
            processes), ``grad_norm`` before clipping, ``lr``, ``skipped`` and ``in_a_row``.
        """
        before = self.begin()
        totals = self.backward(batches)
        grad_norm = self.shared.global_grad_norm(K.gradient_norm(self.params.grads()))
        skip = 1 - (grad_norm.isfinite() & totals["loss"].isfinite()).float()
        clip = self.optim.clip_grad
        divisor = (grad_norm / clip).clamp(min=1) if clip else torch.ones_like(grad_norm)
        self.optimizer.update(self.params.of, self.rate, divisor, skip)
        self.params.drop_grads()
        return totals | self.finish(grad_norm, skip, before)

    @property
    def rate(self) -> Tensor:
        """This step's learning rate, before each layer's scale."""
        return self.rates.take(self.number)

    def begin(self) -> list[Tensor]:
        """Prepares the model. Returns the batch statistics as they are."""
        if not self.model.training:
            self.model.train()
        self.params.follow_frozen()
        self.params.drop_grads()
        return [b.clone() for b in self.batch_statistics]

    def autocast(self) -> torch.autocast:
        """What the forward pass computes in."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def compute(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return self.loss(self.forward, batch)

    def forward_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, and all that is logged of it, the loss included."""
        with self.autocast():
            loss, parts = (self.parallel_loss or self.compute)(batch)
        return loss, {"loss": loss.detach().float(), **{name: part.detach().float() for name, part in parts.items()}}

    def backward(self, batches: Sequence[Batch]) -> dict[str, Tensor]:
        """Leaves the gradients of the mean over micro-batches and processes; returns the same mean of what is logged."""
        totals: dict[str, Tensor] = {}
        if self.parallel_loss is None:
            set_up_parallel_loss(self, batches[0])
        for k, batch in enumerate(batches):
            with self.params.in_use(), self.shared.sync_grads_on_last(self.parallel_loss, k + 1 == len(batches)):
                loss, values = self.forward_loss(batch)
                (loss / len(batches)).backward()
            for name, value in values.items():
                totals[name] = totals.get(name, 0) + value / (len(batches) * self.world)
        if self.world > 1:
            shared = torch.stack(list(totals.values()))
            dist.all_reduce(shared)
            totals = dict(zip(totals, shared.unbind(), strict=True))
        return totals

    @torch.no_grad()
    def finish(self, grad_norm: Tensor, skip: Tensor, statistics: list[Tensor]) -> dict[str, Tensor]:
        """Counts the step, averages the weights, and takes back batch statistics where ``skip`` is 1."""
        rate = self.rate
        for buffer, before in zip(self.batch_statistics, statistics, strict=True):
            buffer.copy_(torch.where(skip > 0, before, buffer))
        if self.averaged:
            weights = [local(p.detach()) for p in self.model.parameters()]
            torch._foreach_lerp_([local(a) for a in self.averaged], weights, 1 - self.optim.ema)
        self.number += 1
        self.skipped += skip
        self.in_a_row.copy_((self.in_a_row + 1) * skip)
        return {"grad_norm": grad_norm, "lr": rate, "skipped": self.skipped, "in_a_row": self.in_a_row}

    def restart(self, step: int, skipped: int, in_a_row: int) -> None:
        """Goes on after ``step`` steps, with the weights and moments that have been loaded."""
        self.number.fill_(step)
        self.skipped.fill_(skipped)
        self.in_a_row.fill_(in_a_row)
        self.params.refresh()

    def signature(self) -> Hashable:
        """What a captured step depends on beside its batches and the numbers in memory."""
        return K.chosen(), tuple(p.requires_grad for p in self.model.parameters())
