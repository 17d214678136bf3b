"""AdamW's parameter groups, and the learning rate of every step."""

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

import avfmae_kernels as K
from avfmae.training.config import OptimConfig


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Weight decay is for matrices: not for 1-D tensors, nor for tokens."""
    return parameter.ndim > 1 and not name.endswith(("region_tokens", "mask_token"))


def parameter_groups(model: nn.Module, optim: OptimConfig) -> list[dict]:
    """Groups by (layer, decayed or not), each with ``lr_scale`` = layer_decay^(last layer − layer)."""
    groups = {}
    for name, parameter in model.named_parameters():
        below = model.last_layer - model.layer_of(name) if optim.layer_decay != 1 else 0  # layers below the last
        decay = optim.weight_decay if decays(name, parameter) else 0.0
        group = groups.setdefault((below, decay), {
            "params": [], "names": [], "weight_decay": decay, "lr_scale": optim.layer_decay**below,
        })  # fmt: skip
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


class AdamW(torch.optim.AdamW):
    """torch's AdamW with the update in one pass, gradients and copies of any dtype, and nothing asked of the device.

    Its state dict is torch's; a state dict of either kind of moments can be loaded.

    Args:
        compact: keep the moments in three bytes a weight instead of eight (see :func:`avfmae_kernels.adamw`).
    """

    plan: tuple[list[bool], list[tuple]] | None = None  # which leaves have gradients, and what follows from it

    def __init__(self, groups: list[dict], compact: bool = False, **options):
        super().__init__(groups, **options)
        self.compact = compact
        self.lists: dict[tuple[int, ...], tuple[list[Tensor], ...]] = {}  # what lists_of gave

    @torch.no_grad()
    def update(self, leaves: Mapping[str, Tensor], rate: Tensor, divisor: Tensor, skip: Tensor) -> None:
        """One step.

        Args:
            leaves: by parameter name, what has the gradient: the parameter, or its copy in another dtype, which follows it.
            rate: learning rate before each group's ``lr_scale``. divisor: of the gradients. skip: 1 leaves all as it is.
        """
        grads = [leaf.grad for leaf in leaves.values()]
        live = [g is not None for g in grads]
        if self.plan is None or self.plan[0] != live:
            self.plan = live, list(self.gather(leaves))
        for group, members, lists, copies in self.plan[1]:
            self.apply(group, [leaf.grad for leaf in members], lists, copies, rate * group["lr_scale"], divisor, skip)

    def apply(
        self,
        group: dict,
        grads: list[Tensor],
        lists: tuple[list[Tensor], ...],
        copies: list[Tensor],
        rate: Tensor,
        divisor: Tensor,
        skip: Tensor,
        squares: Tensor | None = None,
    ) -> None:
        """Updates some of a group's parameters, given what :meth:`lists_of` gives of them; ``rate`` is the group's own."""
        recipe = group["betas"], group["eps"], group["weight_decay"]
        K.adamw(lists[0], grads, *lists[1:], copies, rate, *recipe, divisor, skip, squares)

    def state_of(self, p: nn.Parameter) -> dict[str, Tensor]:
        """A parameter's moments and step, made where there are none."""
        state = self.state[p]
        if not state:
            first, second = (torch.int8, torch.bfloat16) if self.compact else (p.dtype, p.dtype)
            state["step"] = torch.zeros((), device=p.device)
            state["exp_avg"] = torch.zeros_like(p, dtype=first, requires_grad=False)
            state["exp_avg_sq"] = torch.zeros_like(p, dtype=second, requires_grad=False)
        return state

    def lists_of(self, parameters: Sequence[nn.Parameter]) -> tuple[list[Tensor], ...]:
        """Parameters, first and second moments, steps."""
        key = tuple(map(id, parameters))
        if key not in self.lists:
            states = [self.state_of(p) for p in parameters]
            moments = ([s[name] for s in states] for name in ("exp_avg", "exp_avg_sq", "step"))
            self.lists[key] = [p.detach() for p in parameters], *moments
        return self.lists[key]

    def gather(self, leaves: Mapping[str, Tensor]) -> Iterator[tuple]:
        """Groups, leaves, what :meth:`lists_of` gives, and copies: those with copies and those without apart."""
        for group in self.param_groups:
            named = zip(group["names"], group["params"], strict=True)
            members = [(parameter, leaves[name]) for name, parameter in named if leaves[name].grad is not None]
            for copied in (False, True):
                pairs = [(p, leaf) for p, leaf in members if (leaf is not p) == copied]
                copies = [leaf.detach() for _, leaf in pairs] if copied else []
                yield group, [leaf for _, leaf in pairs], self.lists_of([p for p, _ in pairs]), copies

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        self.plan = None  # moments are other tensors now
        self.lists.clear()
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        owners = [(group, p) for group in self.param_groups for p in group["params"]]
        for number, (group, p) in zip(numbers, owners, strict=True):
            if saved := state_dict["state"].get(number):  # torch has made float32 of all of it
                moments = saved["exp_avg"].to(p.device), saved["exp_avg_sq"].to(p.device)
                if (moments[0].dtype == torch.int8) != self.compact:
                    moments = (K.to_compact_moments if self.compact else K.from_compact_moments)(*moments, group["betas"])
                self.state[p] |= {"exp_avg": moments[0].clone(), "exp_avg_sq": moments[1].clone()}


def build_optimiser(model: nn.Module, optim: OptimConfig, compact: bool = False) -> AdamW:
    """The model's AdamW.

    Raises:
        ValueError: compact moments on a GPU, where the update of each of a thousand tensors would be dozens of small kernels.
    """
    if compact and next(model.parameters()).device.type == "cuda":
        raise ValueError(
            "optim.moments: got 'compact' on a GPU, expected 'float32' or 'auto' (a checkpoint with compact moments loads "
            "into them)"
        )
    return AdamW(parameter_groups(model, optim), compact, lr=optim.lr, betas=optim.betas, fused=True)


def learning_rate(step: int, steps_per_epoch: int, optim: OptimConfig) -> float:
    """Linear warm-up, then a cosine to ``min_lr``; all scaled by total_batch / 256."""
    scale = optim.total_batch / 256
    peak, end, begin = optim.lr * scale, optim.min_lr * scale, optim.warmup_lr * scale
    total, warmup = optim.epochs * steps_per_epoch, round(optim.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return begin + (peak - begin) * step / warmup
    share = (step - warmup) / max(1, total - 1 - warmup)
    return end + (peak - end) * (1 + math.cos(math.pi * min(1.0, share))) / 2
