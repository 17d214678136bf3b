"""AdamW, its parameter groups, and the learning rate of every step."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

import avfmae_kernels as K
from avfmae.training.config import OptimConfig
from avfmae.training.parallel import local


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

    Its state dict is torch's, with float32 moments. One with compact moments, as earlier checkpoints have, loads too.

    Attributes:
        moment_dtypes: of the first and the second moment, as they are kept.
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
            pairs = [(p, compute[p]) for p in group["params"] if compute[p].grad is not None]
            self.apply(group, pairs, rate * group["lr_scale"], divisor, skip)

    def apply(
        self, group: dict, pairs: Sequence[tuple[nn.Parameter, Tensor]], rate: Tensor, divisor: Tensor, skip: Tensor,
        squares: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Updates some of a group's parameters (:func:`avfmae_kernels.adamw`).

        Args:
            pairs: each parameter, and what has its gradient: the parameter, or its copy. rate: the group's own.
        """
        recipe = group["betas"], group["eps"], group["weight_decay"]
        for copied in (False, True):
            chosen = [(p, c) for p, c in pairs if (c is not p) == copied]
            states = [self.state_of(p) for p, _ in chosen]
            moments = [[local(s[name]) for s in states] for name in ("exp_avg", "exp_avg_sq", "step")]
            params, grads = [local(p.detach()) for p, _ in chosen], [local(c.grad) for _, c in chosen]
            copies = [c.detach() for _, c in chosen] if copied else []
            K.adamw(params, grads, *moments, copies, rate, *recipe, divisor, skip, squares)

    def state_of(self, p: nn.Parameter) -> dict[str, Tensor]:
        """A parameter's moments and step, made where there are none."""
        state = self.state[p]
        if not state:
            state["step"] = torch.zeros((), device=p.device)
            for name, dtype in zip(("exp_avg", "exp_avg_sq"), self.moment_dtypes, strict=True):
                state[name] = torch.zeros_like(p, dtype=dtype, requires_grad=False)
        return state

    def state_dict(self) -> dict:
        return float32_moments(super().state_dict())

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(float32_moments(state_dict))


def float32_moments(state_dict: dict) -> dict:
    """A state dict whose compact moments, if it has such, are expanded."""
    betas = {number: group["betas"] for group in state_dict["param_groups"] for number in group["params"]}
    state = dict(state_dict["state"])
    for number, s in state.items():
        if s and s["exp_avg"].dtype == torch.int8:
            first, second = K.from_compact_moments(s["exp_avg"], s["exp_avg_sq"], betas[number])
            state[number] = s | {"exp_avg": first, "exp_avg_sq": second}
    return state_dict | {"state": state}


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
