"""AdamW, its parameter groups, and the learning rate of every step."""

import math
from collections.abc import Mapping, Sequence

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
    """torch's AdamW with one fused update, gradients and copies of any dtype, and nothing read back from the device.

    Its state dict is torch's. One with compact moments (int8 and bfloat16, as checkpoints of version 0.1.0 have) loads too.

    Attributes:
        moment_dtypes: of the first and the second moment.
    """

    moment_dtypes = (torch.float32, torch.float32)

    @torch.no_grad()
    def update(self, compute: Mapping[nn.Parameter, Tensor], rate: Tensor, divisor: Tensor, skip: Tensor) -> None:
        """One step.

        Args:
            compute: by parameter, what has the gradient: the parameter, or its copy in another dtype, which is written too.
            rate: learning rate before each group's ``lr_scale``. divisor: of the gradients. skip: 1 leaves everything as it is.
        """
        for group in self.param_groups:
            live = [(p, compute[p]) for p in group["params"] if compute[p].grad is not None]
            for copied in (False, True):
                pairs = [(p, c) for p, c in live if (c is not p) == copied]
                self.apply(
                    group,
                    [p for p, _ in pairs],
                    [c.grad for _, c in pairs],
                    [c.detach() for _, c in pairs] if copied else [],
                    rate * group["lr_scale"],
                    divisor,
                    skip,
                )

    def apply(
        self,
        group: dict,
        params: Sequence[nn.Parameter],
        grads: Sequence[Tensor],
        copies: Sequence[Tensor],
        rate: Tensor,
        divisor: Tensor,
        skip: Tensor,
        squares: Tensor | None = None,
    ) -> None:
        """Updates some of a group's parameters; ``rate`` is the group's own (:func:`avfmae_kernels.adamw`)."""
        states = [self.state_of(p) for p in params]
        moments = [[s[name] for s in states] for name in ("exp_avg", "exp_avg_sq", "step")]
        recipe = group["betas"], group["eps"], group["weight_decay"]
        K.adamw([p.detach() for p in params], grads, *moments, copies, rate, *recipe, divisor, skip, squares)

    def state_of(self, p: nn.Parameter) -> dict[str, Tensor]:
        """A parameter's moments and step, made where there are none."""
        state = self.state[p]
        if not state:
            state["step"] = torch.zeros((), device=p.device)
            for name, dtype in zip(("exp_avg", "exp_avg_sq"), self.moment_dtypes, strict=True):
                state[name] = torch.zeros_like(p, dtype=dtype, requires_grad=False)
        return state

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)  # which makes float32 of all moments, and so would misread compact ones
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        owners = [(group, p) for group in self.param_groups for p in group["params"]]
        for number, (group, p) in zip(numbers, owners, strict=True):
            saved = state_dict["state"].get(number)
            if saved and saved["exp_avg"].dtype == torch.int8:
                moments = K.from_compact_moments(saved["exp_avg"].to(p.device), saved["exp_avg_sq"].to(p.device), group["betas"])
                self.state[p] |= dict(zip(("exp_avg", "exp_avg_sq"), moments, strict=True))


def build_optimizer(model: nn.Module, optim: OptimConfig) -> AdamW:
    """The model's AdamW, with a parameter group for each layer."""
    return AdamW(parameter_groups(model, optim), lr=optim.lr, betas=optim.betas, fused=True)


def learning_rate(step: int, steps_per_epoch: int, optim: OptimConfig) -> float:
    """Linear warm-up, then a cosine to ``min_lr``; all scaled by total_batch / 256."""
    scale = optim.total_batch / 256
    peak, end, begin = optim.lr * scale, optim.min_lr * scale, optim.warmup_lr * scale
    total, warmup = optim.epochs * steps_per_epoch, round(optim.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return begin + (peak - begin) * step / warmup
    share = (step - warmup) / max(1, total - 1 - warmup)
    return end + (peak - end) * (1 + math.cos(math.pi * min(1.0, share))) / 2
