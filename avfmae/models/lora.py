"""Training few weights of a large model: frozen parts, and low-rank updates of linear layers (LoRA, Hu et al., 2022)."""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from avfmae.models.base import AudioVisualModel

Frozen = Literal["none", "encoders", "all"]


class LowRank(nn.Module):
    """W ← W + (alpha / rank) · B A, with A (rank, in) random and B (out, rank) zero, so that training begins at W.

    A parametrization of torch: whatever reads the layer's ``weight`` reads the sum, the fused kernels included.
    """

    def __init__(self, out: int, into: int, rank: int, alpha: float):
        super().__init__()
        self.down, self.up = nn.Parameter(torch.empty(rank, into)), nn.Parameter(torch.zeros(out, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))
        self.scale = alpha / rank

    def forward(self, weight: Tensor) -> Tensor:
        return torch.addmm(weight, self.up, self.down, alpha=self.scale)


def freeze(model: nn.Module, frozen: Frozen) -> None:
    """``"encoders"``: these stay as they are. ``"all"``: all but the head does, which is linear probing."""
    parts = {"none": (), "encoders": ("video_encoder.", "audio_encoder."), "all": ("",)}[frozen]
    for name, parameter in model.named_parameters():
        if name.startswith(parts) and not name.startswith("head"):
            parameter.requires_grad_(False)


def add_low_rank(model: AudioVisualModel, rank: int, alpha: float) -> None:
    """Freezes encoders and fusion, and gives the linear layers of their blocks an update of low rank; the head trains as it is.

    Raises:
        ValueError: the rank is larger than the model is wide.
    """
    parts, width = ("video_encoder.", "audio_encoder.", "fusion."), model.cfg.width
    if rank > width:
        raise ValueError(f"lora: got the rank {rank}, expected at most {width}, the model's width")
    layers = [m for n, m in model.named_modules() if isinstance(m, nn.Linear) and n.startswith(parts) and ".embed" not in n]
    for name, parameter in model.named_parameters():
        if name.startswith(parts):
            parameter.requires_grad_(False)
    for layer in layers:
        if min(layer.weight.shape) < width:  # what weighs layers, and no matrix of a block
            continue
        update = LowRank(layer.out_features, layer.in_features, rank, alpha).to(layer.weight.device)
        parametrize.register_parametrization(layer, "weight", update)


def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """The model's state with each low-rank update added to its weight, under the names of a model without them."""
    state = model.state_dict()
    for prefix, module in model.named_modules():
        if isinstance(updates := getattr(module, "parametrizations", None), nn.ModuleDict):
            for name in updates:
                state = {k: v for k, v in state.items() if not k.startswith(f"{prefix}.parametrizations.{name}.")}
                state[f"{prefix}.{name}"] = getattr(module, name).detach()
    return state
