"""One optimiser step, all of it on the device: forward, backward, averaging over processes, clipping, schedule, AdamW.

Nothing in it asks a GPU for a number, so that it never waits for Python. There the whole step is one CUDA graph, on a CPU a tape
(:mod:`avfmae.engines.cuda_graph`). ``avfmae_kernels.use("reference")`` gives the plain step instead, with autocast and nothing
captured.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn

import avfmae_kernels as K
from avfmae.data.batch import Batch
from avfmae.engines.cpu.optimizer_in_backward import EarlyUpdate
from avfmae.engines.cuda_graph import Graph, Replay
from avfmae.losses import world_size
from avfmae.models.attention import CrossAttention, SelfAttention
from avfmae.training.config import OptimConfig
from avfmae.training.dist import GradientAverage
from avfmae.training.optim import build_optimiser, learning_rate
from avfmae_kernels import matmul, processor
from avfmae_kernels.adamw import bound
from avfmae_kernels.dispatch import why_not

# Gives a batch's loss and the parts of it worth logging; called with something that computes as the model does.
LossFunction = Callable[[Callable, Batch], tuple[Tensor, dict[str, Tensor]]]


def resolve(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of products: ``"auto"`` is bfloat16 wherever the processor multiplies it."""
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" or processor.has("avx512_bf16") else "float32"
    return {"bf16": torch.bfloat16, "float32": torch.float32}[precision]


class TrainingStep:
    """The step of a model under a loss; call it with the step's micro-batches.

    In bfloat16 the layers compute with copies of their weights, which the optimiser writes in the pass that updates the weights;
    but where products round weights themselves (on CPUs with AVX512-BF16) there are none. Autocast would cast every weight anew
    in every step, and every gradient back; it does so where gradients of several micro-batches add up, which they do in float32.

    Args:
        model: on its device.
        loss: see LossFunction.
        optim: the recipe. steps, steps_per_epoch: of the whole run, for the schedule.
        micro_batches: of a step.
        precision: ``"auto"``, ``"float32"`` or ``"bf16"``.
        capture: replay the step as a CUDA graph, on a CPU from a tape (:mod:`avfmae.engines.cuda_graph`); with several processes,
            under torch.compile on a CPU, and where checkpointed blocks must draw their stochastic depth once more it runs
            eagerly.
        compiled: let torch.compile have the forward and backward that the ops leave.
        early: on a CPU, update weights in the backward pass where nothing waits for all gradients.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: LossFunction,
        optim: OptimConfig,
        steps: int,
        steps_per_epoch: int,
        micro_batches: int = 1,
        precision: str = "auto",
        capture: bool = True,
        compiled: bool = False,
        early: bool = True,
    ):
        self.model, self.loss, self.optim = model.train(), loss, optim
        self.device = device = next(model.parameters()).device
        self.dtype, self.plain = resolve(precision, device), K.plain()
        self.world = world_size()
        rounded = matmul.rounds(device, self.dtype) and not self.plain and not compiled
        on_cpu = device.type == "cpu" and not self.plain and why_not("adamw", "cpp", "cpu") is None
        compact = optim.moments == "compact" or (optim.moments == "auto" and on_cpu and fine_steps(optim.betas))
        self.optimiser = build_optimiser(model, optim, compact)
        self.leaves = dict(model.named_parameters())  # what gradients are taken of: weights, or copies of them
        if self.dtype != torch.float32 and micro_batches == 1 and not self.plain and not rounded:
            for name in linear_parameters(model):
                self.leaves[name] = nn.Parameter(self.leaves[name].detach().to(self.dtype))
        self.places = [
            (model.get_submodule(path), name, self.leaves[full], weight)
            for full, weight in model.named_parameters()
            if self.leaves[full] is not weight
            for path, _, name in [full.rpartition(".")]
        ]
        self.forward = torch.compile(model) if compiled else model
        waits = self.world > 1 or micro_batches > 1 or optim.clip_grad or self.places or self.plain
        self.may_update_early, self.rounded, self.early, self.trained = (
            early and device.type == "cpu" and not waits,
            rounded,
            None,
            None,
        )
        self.follow_frozen()
        self.average = GradientAverage(list(self.leaves.values())) if self.world > 1 else None
        self.batch_statistics = [b for m in model.modules() if isinstance(m, nn.BatchNorm1d) for b in m.buffers()]
        self.averaged = [p.detach().clone() for p in model.parameters()] if optim.ema else []
        self.rates = torch.tensor([learning_rate(s, steps_per_epoch, optim) for s in range(steps)], device=device)
        self.number = torch.zeros((), dtype=torch.int64, device=device)
        self.skipped, self.in_a_row = (torch.zeros((), device=device) for _ in range(2))
        draws_again = model.cfg.recompute != "none" and model.cfg.drop_path > 0
        self.captured = None
        if capture and self.world == 1 and not self.plain and not draws_again:
            if device.type == "cuda":
                self.captured = Graph(self.run, device, self.settings)
            elif not compiled:
                self.captured = Replay(self.run, self.settings)

    @contextmanager
    def with_leaves(self) -> Iterator[None]:
        """The model computes with the leaves; also on the way back, where checkpointed blocks run once more."""
        for module, name, leaf, _ in self.places:
            module._parameters[name] = leaf
        try:
            yield
        finally:
            for module, name, _, weight in self.places:
                module._parameters[name] = weight

    def follow_frozen(self) -> None:
        """Weights may be frozen, and thawed, between two steps: their copies and their early updates follow."""
        trained = tuple(p.requires_grad for p in self.model.parameters())
        if trained == self.trained:
            return
        self.trained = trained
        for _, _, leaf, weight in self.places:
            leaf.requires_grad_(weight.requires_grad)
        if self.may_update_early:
            self.early = EarlyUpdate(self.optimiser, products=self.rounded)

    def autocast(self):
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def restart(self, step: int, skipped: int, in_a_row: int) -> None:
        """Goes on after ``step`` steps, with weights and moments as they now are, which may be other tensors than before."""
        if self.captured:
            self.captured.forget()
        self.number.fill_(step)
        self.skipped.fill_(skipped)
        self.in_a_row.fill_(in_a_row)
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Makes the copies again from the weights, after someone else has changed these."""
        for _, _, leaf, weight in self.places:
            leaf.copy_(weight)

    def __call__(self, batches: Sequence[Batch]) -> dict[str, Tensor]:
        """Does the step. Returns scalars on the device, which the next step overwrites: the loss and its parts (means over
        micro-batches and processes), ``grad_norm``, ``lr``, ``skipped`` and ``in_a_row`` (steps left out as not finite)."""
        if not self.model.training:
            self.model.train()
        self.follow_frozen()
        values = (self.captured or self.run)(batches)
        for leaf in self.leaves.values():
            leaf.grad = None
        return values

    def settings(self) -> Hashable:
        """What a captured step depends on."""
        return K.chosen(), self.trained

    def run(self, batches: Sequence[Batch]) -> dict[str, Tensor]:
        early = self.early if len(batches) == 1 else None
        statistics = [b.clone() for b in self.batch_statistics]
        for leaf in self.leaves.values():
            leaf.grad = None
        totals: dict[str, Tensor] = {}
        for k, batch in enumerate(batches):
            last = k + 1 == len(batches)
            with self.with_leaves(), self.average.during(last) if self.average else nullcontext():
                with self.autocast():
                    loss, parts = self.loss(self.forward, batch)
                with early.during(self.rates.take(self.number)) if early else nullcontext():
                    if not early or loss.isfinite():
                        (loss / len(batches)).backward()
            for name, value in {"loss": loss, **parts}.items():
                share = value.detach().float() / (len(batches) * self.world)
                totals[name] = totals[name] + share if name in totals else share
        with torch.no_grad():
            if self.world > 1:
                shared = torch.stack(list(totals.values()))
                dist.all_reduce(shared)
                totals = dict(zip(totals, shared.unbind(), strict=True))
            return totals | self.update(totals["loss"], statistics, early)

    def update(self, loss: Tensor, statistics: list[Tensor], early: EarlyUpdate | None) -> dict[str, Tensor]:
        """Weights, moments, copies and averages, unless something is not finite: then everything stays as it was, but for weights
        that were updated early, before a gradient that is not finite was met."""
        rate = self.rates.take(self.number)
        if early:
            norm = early.squares.sqrt()
        else:
            norm = K.gradient_norm([leaf.grad for leaf in self.leaves.values() if leaf.grad is not None])
        skip = 1 - (norm.isfinite() & loss.isfinite()).float()
        if not early:
            divisor = (norm / self.optim.clip_grad).clamp(min=1) if self.optim.clip_grad else torch.ones_like(norm)
            self.optimiser.update(self.leaves, rate, divisor, skip)
        for buffer, before in zip(self.batch_statistics, statistics, strict=True):
            buffer.copy_(torch.where(skip > 0, before, buffer))
        if self.averaged:
            torch._foreach_lerp_(self.averaged, [p.detach() for p in self.model.parameters()], 1 - self.optim.ema)
        self.number += 1
        self.skipped += skip
        self.in_a_row.copy_((self.in_a_row + 1) * skip)
        return {"grad_norm": norm, "lr": rate, "skipped": self.skipped, "in_a_row": self.in_a_row}


def fine_steps(betas: tuple[float, float]) -> bool:
    """Whether 8 bits of a first moment have fine steps: hundredths of the root of the second, as with β₂ = 0.95; with 0.999 they
    are six."""
    beta1, beta2 = betas
    return beta1**2 < beta2 and bound(betas) < 2


def linear_parameters(model: nn.Module) -> list[str]:
    """Names of what matrix products read: weights and biases of linear layers, convolutions and attention."""
    kinds = (nn.Linear, nn.Conv1d, SelfAttention, CrossAttention)
    return [
        f"{prefix}.{name}"
        for prefix, module in model.named_modules()
        if isinstance(module, kinds)
        for name, _ in module.named_parameters(recurse=False)
    ]
