"""AdamW's parameter groups, and the learning rate of every step."""

import math
import re

import torch
from torch import nn

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


def build_optimiser(model: nn.Module, optim: OptimConfig) -> torch.optim.AdamW:
    fused = next(model.parameters()).device.type == "cuda"
    return torch.optim.AdamW(parameter_groups(model, optim), lr=optim.lr, betas=optim.betas, fused=fused)


def learning_rate(step: int, steps_per_epoch: int, optim: OptimConfig) -> float:
    """Linear warm-up, then a cosine to ``min_lr``; all scaled by total_batch / 256."""
    scale = optim.total_batch / 256
    peak, end, begin = optim.lr * scale, optim.min_lr * scale, optim.warmup_lr * scale
    total, warmup = optim.epochs * steps_per_epoch, round(optim.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return begin + (peak - begin) * step / warmup
    share = (step - warmup) / max(1, total - 1 - warmup)
    return end + (peak - end) * (1 + math.cos(math.pi * min(1.0, share))) / 2
