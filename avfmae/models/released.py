"""The names and shapes that weights have in the published files.

Each encoder and fusion tells the names inside it (``RELEASED_NAMES``); here are the names of the parts, and of what the
models have besides.
"""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from avfmae.config import ModelConfig
from avfmae.models.base import part_class
from avfmae.models.interfaces import NameRule

PARTS = (
    (r"^(video|audio)_layer_weights$", r"layer_weights_\1"),
    (r"^head_norm\.", "fc_norm."),
    (r"^video_decoder\.mask_token$", "mask_token"),
    (r"^audio_decoder\.mask_token$", "mask_token_audio"),
    (r"^video_decoder\.embed\.", "encoder_to_decoder."),
    (r"^audio_decoder\.embed\.", "encoder_to_decoder_audio."),
    (r"^video_(encoder|decoder)\.", r"\1."),
    (r"^audio_(encoder|decoder)\.", r"\1_audio."),
    (r"^fusion\.", "encoder_fusion."),
)


def released_names(model: nn.Module, name: str) -> list[str]:
    """The released names of one of our parameters or buffers: one, or two where a packed matrix is stored in two."""
    part, dot, rest = name.partition(".")
    cfg: ModelConfig = model.cfg
    kind = part_class(cfg, part)
    rules = kind.RELEASED_NAMES if kind else ()
    return _renamed([part + dot + inner for inner in _renamed([rest], rules)], _part_rules(cfg, hasattr(model, "head")))


def _part_rules(cfg: ModelConfig, finetuning: bool) -> Iterable[NameRule]:
    """PARTS, but for HiCMAE's layer weights, which have our names, and a fine-tuned video-only model, which is its encoder."""
    if finetuning and cfg.fusion == "none" and len(cfg.modalities) == 1:
        return ((r"^(?:video|audio)_encoder\.", ""), *PARTS)
    return PARTS[1:] if cfg.fusion == "cross" else PARTS


def _renamed(names: list[str], rules: Iterable[NameRule]) -> list[str]:
    for pattern, *replacements in rules:
        names = [re.sub(pattern, r, n) for n in names for r in (replacements if re.search(pattern, n) else replacements[:1])]
    return names


def to_released(model: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by our names (parameters, gradients, moments) by released names and in released shapes."""
    released = {}
    for name, value in values.items():
        names = released_names(model, name)
        if len(names) == 2:
            third = len(value) // 3
            released[names[0]], released[names[1]] = value[:third], value[third:]
        elif name.endswith("embed.proj.weight"):
            released[names[0]] = value.reshape(-1, *model.get_submodule(name.removesuffix(".proj.weight")).kernel)
        elif name.endswith("mask_token"):
            released[names[0]] = value[None, None]
        else:
            released[names[0]] = value
    return released
