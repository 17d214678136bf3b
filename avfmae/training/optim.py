"""AdamW's parameter groups, and the learning rate of every step."""

import math
import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

import avfmae_kernels as K
from avfmae.training.config import OptimConfig


def layer_id(name: str, depth: int, fusion_depth: int) -> int:
    """Embeddings, positions and tokens 0; encoder block i is i+1; fusion unit i is depth+i+1; all else comes last."""
    if "embed." in name or name.endswith(("region_tokens", "mask_token")):
        return 0
    if match := re.match(r"(?:video|audio)_encoder\.blocks\.(\d+)\.", name):
        return int(match[1]) + 1
    if match := re.match(r"fusion\.\w+_(?:units|blocks)\.(\d+)\.", name):
        return depth + int(match[1]) + 1
    return depth + fusion_depth + 1


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Weight decay is for matrices: not for 1-D tensors, nor for tokens."""
    return parameter.ndim > 1 and not name.endswith(("region_tokens", "mask_token"))


def parameter_groups(model: nn.Module, optim: OptimConfig) -> list[dict]:
    """Groups by (layer, decayed or not), each with ``lr_scale`` = layer_decay^(last layer − layer)."""
    cfg, groups = model.cfg, {}
    last = cfg.depth + cfg.fusion_depth + 1
    for name, parameter in model.named_parameters():
        layer = layer_id(name, cfg.depth, cfg.fusion_depth) if optim.layer_decay != 1 else last
        decay = optim.weight_decay if decays(name, parameter) else 0.0
        group = groups.setdefault((layer, decay), {
            "params": [], "names": [], "weight_decay": decay, "lr_scale": optim.layer_decay ** (last - layer),
        })  # fmt: skip
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


class AdamW(torch.optim.AdamW):
    """torch's AdamW with the update in one pass, gradients and copies of any dtype, and nothing asked of the device.

    Its state dict is torch's.
    """

    plan: tuple[list[bool], list[tuple]] | None = None  # which leaves have gradients, and what follows from it

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
        for group, members, *tensors, copies in self.plan[1]:
            K.adamw(
                tensors[0], [leaf.grad for leaf in members], *tensors[1:], copies,
                rate * group["lr_scale"], group["betas"], group["eps"], group["weight_decay"], divisor, skip,
            )  # fmt: skip

    def gather(self, leaves: Mapping[str, Tensor]) -> Iterator[tuple]:
        """What :func:`avfmae_kernels.adamw` is given of each group, those with copies and those without apart."""
        for group in self.param_groups:
            named = zip(group["names"], group["params"], strict=True)
            members = [(parameter, leaves[name]) for name, parameter in named if leaves[name].grad is not None]
            for copied in (False, True):
                pairs = [(p, leaf) for p, leaf in members if (leaf is not p) == copied]
                for p, _ in pairs:
                    if not self.state[p]:
                        self.state[p]["step"] = torch.zeros((), device=p.device)
                        self.state[p] |= {key: torch.zeros_like(p) for key in ("exp_avg", "exp_avg_sq")}
                yield (
                    group, [leaf for _, leaf in pairs], [p.detach() for p, _ in pairs],
                    *([self.state[p][key] for p, _ in pairs] for key in ("exp_avg", "exp_avg_sq", "step")),
                    [leaf.detach() for _, leaf in pairs] if copied else [],
                )  # fmt: skip

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        self.plan = None  # moments are other tensors now


def build_optimiser(model: nn.Module, optim: OptimConfig) -> AdamW:
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
