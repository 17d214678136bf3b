"""Encoders that other projects published, VideoMAE's and AudioMAE's, in the form of ours.

They stand by themselves (``blocks.0…``) where a pre-training model has ``encoder.blocks.0…``; AudioMAE's pack the biases of
queries, keys and values, and come with a table of positions, for a class token and for another number of patches.
"""

import math
from collections.abc import Collection, Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from avfmae.config import ModalityConfig
from avfmae.models.embed import PatchEmbed
from avfmae.models.released import released_names

PREFIXES = ("", "encoder.", "encoder_audio.")


def as_ours(model: nn.Module, state: Mapping[str, Tensor], names: Collection[str]) -> tuple[dict[str, Tensor], list[str]]:
    """A file's weights under the model's released names, and what the reader of a report should know of it.

    A table of positions becomes a buffer that is saved with the model.

    Args:
        names: the released names of the model's tensors.

    Raises:
        ValueError: a table of positions is of no grid.
    """
    notes, weights = [], {}
    prefix = max(PREFIXES, key=lambda prefix: sum(prefix + name in names for name in state))
    for name, tensor in state.items():
        start, packed, _ = name.partition("qkv.bias")
        if packed:
            weights[f"{prefix}{start}q_bias"], _, weights[f"{prefix}{start}v_bias"] = tensor.chunk(3)
        else:
            weights[prefix + name] = tensor
    if count := sum(name.endswith("qkv.bias") for name in state):
        notes.append(f"{count} qkv.bias: taken apart; the keys' part is left out, which softmax does not see")
    for name, module in list(model.named_modules()):
        if isinstance(module, PatchEmbed):
            (table,) = released_names(model, f"{name}.positions")
            if table in weights:
                weights[table], note = resampled(table, weights[table], module.m)
                module.register_buffer("positions", module.positions, persistent=True)
                notes += [note] if note else []
    return weights, notes


def resampled(name: str, table: Tensor, m: ModalityConfig) -> tuple[Tensor, str]:
    """Positions (1, class tokens + tokens of some grid, C) at the tokens of ``m``: (tokens, C), and a note of what was changed.

    Another grid of video has as many time steps and is square; one of audio has as many mel patches.
    """
    table = table.reshape(-1, table.shape[-1])
    for classes in (0, 1, 2):
        rest = table[classes:]
        if len(rest) == m.tokens:
            return rest, f"{name}: {classes} of class tokens left out" if classes else ""
    for classes in (0, 1, 2):
        rest = table[classes:]
        grid = _grid(len(rest), m)
        if grid:
            image = rest.float().T.reshape(1, -1, *grid)
            mode = "trilinear" if len(grid) == 3 else "bilinear"
            image = F.interpolate(image, size=m.grid, mode=mode, align_corners=False)
            sizes = " to ".join("x".join(map(str, axes)) for axes in (grid, m.grid))
            return image.reshape(image.shape[1], -1).T.contiguous(), f"{name}: resampled from {sizes} tokens"
    raise ValueError(f"{name}: got {len(table)} positions, expected {m.tokens}, or those of another grid than {m.grid}")


def _grid(tokens: int, m: ModalityConfig) -> tuple[int, ...] | None:
    """The grid that so many tokens are of; None where it is none."""
    if len(m.grid) == 2:
        steps, mels = tokens // m.grid[1], m.grid[1]
        return (steps, mels) if steps and steps * mels == tokens else None
    side = math.isqrt(tokens // m.grid[0])
    return (m.grid[0], side, side) if side and m.grid[0] * side**2 == tokens else None
