"""AdamW inside the backward pass: a weight is updated as soon as its gradient is known, and the gradient is freed.

On a CPU this saves the gradients' memory. Gradients of linear layers are not even written: their product goes from registers into
the update (:func:`avfmae_kernels.matmul_adamw`).
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from weakref import WeakMethod

import torch
from torch import Tensor, nn

import avfmae_kernels as K
from avfmae.data.batch import Batch
from avfmae.engines import Step
from avfmae_kernels import matmul

FLUSH_NUMEL = 2**22  # pending gradients are applied once they have this many elements


def why_not(step) -> str | None:
    """The reason for which weights must wait for the whole backward pass, or None."""
    if step.world > 1:
        return "gradients are averaged over processes"
    if step.micro_batches > 1:
        return "gradients of several micro-batches add up"
    if step.optim.clip_grad:
        return "clipping needs the norm of all gradients"
    if K.chosen() == "reference":
        return "the reference kernels were asked for"
    return None


class BackwardStep:
    """A training step that updates weights in its backward pass. One whose loss is not finite changes only the counters."""

    def __init__(self, step):
        self.step = step
        products = matmul.rounds(step.device, step.dtype) and step.forward is step.model
        if products:  # which round float32 weights themselves: no copies in bfloat16 are kept
            step.params = type(step.params)(step.model, torch.float32)
        self.products, self.updates, self.trained = products, None, None

    def __call__(self, batches: Sequence[Batch]) -> dict[str, Tensor]:
        step, (batch,) = self.step, batches
        before = step.begin()
        self.follow_frozen()
        with step.params.in_use():
            loss, values = step.forward_loss(batch)
            finite = values["loss"].isfinite()
            with self.updates.during(step.rate):
                if finite:
                    loss.backward()
        grad_norm = torch.where(finite, self.updates.squares.sqrt(), torch.nan)
        return values | step.finish(grad_norm, 1 - finite.float(), before)

    def follow_frozen(self) -> None:
        """Weights may be frozen and thawed between two steps."""
        trained = tuple(p.requires_grad for p in self.step.model.parameters())
        if trained != self.trained:
            if self.updates:
                self.updates.close()
            self.trained, self.updates = trained, OptimizerInBackward(self.step, self.products)


class EndsAtBadGradients:
    """The same step, which raises where a gradient was not finite: other weights were updated before it was met."""

    def __init__(self, step: Step):
        self.step = step

    def __call__(self, batches: Sequence[Batch]) -> dict[str, Tensor]:
        values = self.step(batches)
        if values["loss"].isfinite() and not values["grad_norm"].isfinite():
            raise RuntimeError(
                "a gradient was not finite, and other weights had been updated in the same backward pass. The run ends; its last "
                "checkpoint is good. Lower optim.lr, or go on with --engine eager, which leaves such a step out"
            )
        return values


class OptimizerInBackward:
    """Updates an optimizer's parameters during a backward pass; those whose gradient is not finite stay as they are.

    Args:
        step: the training step that has the optimizer.
        products: update linear layers' weights from the factors of their gradients. A weight that several layers share is left to
            autograd, which adds up; the first backward pass tells which those are.
    """

    def __init__(self, step, products: bool):
        self.optimizer, self.compute = step.optimizer, step.params.of
        self.active, self.counted = False, not products
        self.pending: list[tuple[int, nn.Parameter, nn.Parameter]] = []  # group, parameter, what has its gradient
        self.uses, self.updated = Counter(), set()
        members = [(k, p) for k, group in enumerate(self.optimizer.param_groups) for p in group["params"] if p.requires_grad]
        fits = [(k, p) for k, p in members if products and p.ndim == 2 and p.shape[1] % 32 == 0]
        self.weight_grad_hooks = {id(p): partial(self.update_weight, k, p) for k, p in fits}
        collect = WeakMethod(self.collect_grad)  # a model may outlive its optimizer
        self.handles = [self.compute[p].register_post_accumulate_grad_hook(_hook(collect, number, p)) for number, p in members]

    def close(self) -> None:
        for handle in self.handles:
            handle.remove()

    @contextmanager
    def during(self, rate: Tensor) -> Iterator[None]:
        """Around a backward pass, at a learning rate of ``rate`` before each group's scale."""
        self.rates = [rate * group["lr_scale"] for group in self.optimizer.param_groups]
        self.squares, self.one = torch.zeros_like(rate), torch.ones_like(rate)
        self.active, self.pending = True, []
        self.updated.clear()
        try:
            with K.intercept_weight_grads(self.weight_grad_hooks):
                yield
            self.flush()
        finally:
            self.active = False
        if not self.counted and self.uses:
            self.weight_grad_hooks = {key: hook for key, hook in self.weight_grad_hooks.items() if self.uses[key] == 1}
            self.counted = True

    def update_weight(self, number: int, parameter: nn.Parameter, grad: Tensor, a: Tensor) -> Tensor | None:
        """Updates a linear layer's weight, whose gradient is gradᵀ·a; in the first pass it only counts the use."""
        if not self.counted or not parameter.requires_grad:
            self.uses[id(parameter)] += 1
            return None
        group, state = self.optimizer.param_groups[number], self.optimizer.state_of(parameter)
        self.updated.add(id(parameter))
        moments = (state[name] for name in ("exp_avg", "exp_avg_sq", "step"))
        recipe = self.rates[number], group["betas"], group["eps"], group["weight_decay"]
        return K.matmul_adamw(grad, a, parameter.detach(), *moments, *recipe, self.squares)

    def collect_grad(self, number: int, parameter: nn.Parameter, holder: nn.Parameter) -> None:
        """Collects a gradient that autograd has completed."""
        if not self.active or holder.grad is None:
            return
        if id(parameter) in self.updated:
            shape = tuple(parameter.shape)
            raise RuntimeError(f"a weight of shape {shape} got a gradient from outside the one layer that had used it before")
        self.pending.append((number, parameter, holder))
        if sum(p.numel() for _, p, _ in self.pending) >= FLUSH_NUMEL:
            self.flush()

    @torch.no_grad()
    def flush(self) -> None:
        """Updates the parameters whose gradients are pending."""
        for number in {number for number, *_ in self.pending}:
            pairs = [(parameter, holder) for k, parameter, holder in self.pending if k == number]
            group = self.optimizer.param_groups[number]
            self.optimizer.apply(group, pairs, self.rates[number], self.one, 0 * self.one, self.squares)
            for _, holder in pairs:
                holder.grad = None
        self.pending = []


def _hook(collect: WeakMethod, number: int, parameter: nn.Parameter) -> Callable[[nn.Parameter], None]:
    def hook(holder: nn.Parameter) -> None:
        if call := collect():
            call(number, parameter, holder)

    return hook
