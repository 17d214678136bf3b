"""AdamW's parameter groups, and the learning rate of every step."""

import math
import re
from collections.abc import Mapping

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

    @torch.no_grad()
    def update(self, leaves: Mapping[str, Tensor], rate: Tensor, divisor: Tensor, skip: Tensor) -> None:
        """One step.

        Args:
            leaves: by parameter name, what has the gradient: the parameter, or its copy in another dtype, which follows it.
            rate: learning rate before each group's ``lr_scale``. divisor: of the gradients. skip: 1 leaves all as it is.
        """
        for group in self.param_groups:
            members = [
                (parameter, leaves[name])
                for name, parameter in zip(group["names"], group["params"], strict=True)
                if leaves[name].grad is not None
            ]
            for parameter, _ in members:
                if not self.state[parameter]:
                    self.state[parameter] |= {
                        "step": torch.zeros((), device=parameter.device),
                        "exp_avg": torch.zeros_like(parameter),
                        "exp_avg_sq": torch.zeros_like(parameter),
                    }
            for copied in (False, True):
                pairs = [(p, leaf) for p, leaf in members if (leaf is not p) == copied]
                states = [self.state[p] for p, _ in pairs]
                K.adamw(
                    [p.detach() for p, _ in pairs], [leaf.grad for _, leaf in pairs],
                    *([s[key] for s in states] for key in ("exp_avg", "exp_avg_sq", "step")),
                    [leaf.detach() for _, leaf in pairs] if copied else [],
                    rate * group["lr_scale"], group["betas"], group["eps"], group["weight_decay"], divisor, skip,
                )  # fmt: skip


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
