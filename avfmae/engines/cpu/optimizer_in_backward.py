"""AdamW inside the backward pass: a weight is updated as soon as its gradient is known, and the gradient is gone.

That can be where nothing waits for all gradients: no clipping by their norm, no micro-batches, no other process. On a CPU it
saves the memory of the gradients. Those of linear layers are not even written: their product goes from registers into the update.
"""

import weakref
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

import avfmae_kernels as K
from avfmae.training.optim import AdamW

PILE = 2**22  # gradients that are worth a call


class EarlyUpdate:
    """Updates an optimiser's parameters during a backward pass.

    Where a gradient is not finite its weights stay as they are; what was updated before stays updated.

    Args:
        optimiser: of every parameter that gets a gradient.
        products: take linear layers' gradients before they are computed. A weight that several layers share is left to autograd,
            which adds up; the first backward pass tells which those are.
    """

    def __init__(self, optimiser: AdamW, products: bool):
        self.optimiser, self.active, self.counted = optimiser, False, not products
        self.pile: dict[int, list[nn.Parameter]] = defaultdict(list)  # by group
        self.piled = 0
        self.uses, self.taken = Counter(), set()
        members = [(number, p) for number, group in enumerate(optimiser.param_groups) for p in group["params"] if p.requires_grad]
        self.takers = {
            id(p): partial(self.take, number, p) for number, p in members if products and p.ndim == 2 and p.shape[1] % 32 == 0
        }
        owner = weakref.ref(self)  # a model may outlive its optimiser

        def hook_of(number: int):
            def hook(parameter: nn.Parameter) -> None:
                if (updates := owner()) and updates.active and parameter.grad is not None:
                    updates.add(number, parameter)

            return hook

        for number, parameter in members:
            parameter.register_post_accumulate_grad_hook(hook_of(number))

    @contextmanager
    def during(self, rate: Tensor) -> Iterator[None]:
        """What is done inside updates the parameters, at a learning rate of ``rate`` before each group's scale."""
        self.rates = [rate * group["lr_scale"] for group in self.optimiser.param_groups]
        self.squares, self.one = torch.zeros_like(rate), torch.ones_like(rate)
        self.active = True
        self.taken.clear()
        try:
            with K.gradients_taken(self.takers):
                yield
            self.flush()
        finally:
            self.pile.clear()
            self.piled, self.active = 0, False
        if not self.counted and self.uses:
            self.takers = {key: taker for key, taker in self.takers.items() if self.uses[key] == 1}
            self.counted = True

    def take(self, number: int, parameter: nn.Parameter, grad: Tensor, a: Tensor) -> Tensor | None:
        """Updates a linear layer's weight, whose gradient is gradᵀ·a; in the first pass only counts it."""
        if not self.counted or not parameter.requires_grad:
            self.uses[id(parameter)] += 1
            return None
        group, state = self.optimiser.param_groups[number], self.optimiser.state_of(parameter)
        self.taken.add(id(parameter))
        return K.matmul_adamw(
            grad, a, parameter.detach(), state["exp_avg"], state["exp_avg_sq"], state["step"], self.rates[number],
            group["betas"], group["eps"], group["weight_decay"], self.squares,
        )  # fmt: skip

    def add(self, number: int, parameter: nn.Parameter) -> None:
        """Takes note of a gradient that autograd has completed."""
        if id(parameter) in self.taken:
            raise RuntimeError(
                f"a weight of shape {tuple(parameter.shape)} got a gradient from outside the one layer that had used it before"
            )
        self.pile[number].append(parameter)
        self.piled += parameter.numel()
        if self.piled >= PILE:
            self.flush()

    @torch.no_grad()
    def flush(self) -> None:
        """Updates what has a gradient."""
        for number, parameters in self.pile.items():
            grads, lists = [p.grad for p in parameters], self.optimiser.lists_of(parameters)
            self.optimiser.apply(
                self.optimiser.param_groups[number], grads, lists, [], self.rates[number], self.one, 0 * self.one, self.squares
            )
            for p in parameters:
                p.grad = None
        self.pile.clear()
        self.piled = 0
