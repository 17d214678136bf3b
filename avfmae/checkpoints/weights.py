"""Weights on disk: always the released layout, whatever a module packs together in memory.

:func:`load_released` reads the published files (pickles, of which nothing is executed: :mod:`avfmae.checkpoints.pickles`) and
this project's own (safetensors with the same names); :func:`released_state_dict` gives any of our models in that layout.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from avfmae.checkpoints import archives
from avfmae.checkpoints.places import find_weights
from avfmae.config import ModalityConfig, ModelConfig
from avfmae.files import atomic_write

# From our names to the released ones: every rule that matches is applied, in this order.
RENAMES = [(re.compile(pattern), replacement) for pattern, replacement in [
    (r"^video_layer_weights$", "layer_weights_video"),
    (r"^audio_layer_weights$", "layer_weights_audio"),
    (r"^head_norm\.", "fc_norm."),
    (r"^video_decoder\.mask_token$", "mask_token"),
    (r"^audio_decoder\.mask_token$", "mask_token_audio"),
    (r"^video_decoder\.embed\.", "encoder_to_decoder."),
    (r"^audio_decoder\.embed\.", "encoder_to_decoder_audio."),
    (r"^video_(encoder|decoder)\.", r"\1."),
    (r"^audio_(encoder|decoder)\.", r"\1_audio."),
    # LGI-Former
    (r"(?<=\.)region_tokens$", "lg_region_tokens"),
    (r"(?<=\.)embed\.proj\.", "patch_embed.proj."),
    (r"(?<=\.)local_norm\.", "first_attn_norm0."),
    (r"(?<=\.)local_attn\.", "first_attn."),
    (r"(?<=\.)region_norm\.", "second_attn_norm0."),
    (r"(?<=\.)region_attn\.", "second_attn."),
    (r"(?<=\.)spread_norm\.", "third_attn_norm0."),
    (r"(?<=\.)spread_context_norm\.", "third_attn_norm1."),
    (r"(?<=\.)spread_attn\.", "third_attn."),
    (r"(?<=\.)collect_norm\.", "fourth_attn_norm0."),
    (r"(?<=\.)collect_context_norm\.", "fourth_attn_norm1."),
    (r"(?<=\.)collect_attn\.", "fourth_attn."),
    # IAV-CL, one modality's half of a DiER unit
    (r"^fusion\.video_units\.(\d+)\.norm\.", r"fusion.blocks.\1.norm3."),
    (r"^fusion\.video_units\.(\d+)\.self_norm\.", r"fusion.blocks.\1.norm1."),
    (r"^fusion\.video_units\.(\d+)\.self_attn\.", r"fusion.blocks.\1.attn."),
    (r"^fusion\.video_units\.(\d+)\.self_mlp_norm\.", r"fusion.blocks.\1.norm_vsa."),
    (r"^fusion\.video_units\.(\d+)\.self_mlp\.", r"fusion.blocks.\1.mlp_vsa."),
    (r"^fusion\.video_units\.(\d+)\.cross_norm\.", r"fusion.blocks.\1.cross_norm1."),
    (r"^fusion\.video_units\.(\d+)\.context_norm\.", r"fusion.blocks.\1.cross_norm2."),
    (r"^fusion\.video_units\.(\d+)\.cross_attn\.", r"fusion.blocks.\1.cross_attn."),
    (r"^fusion\.video_units\.(\d+)\.cross_mlp_norm\.", r"fusion.blocks.\1.norm_vcma."),
    (r"^fusion\.video_units\.(\d+)\.cross_mlp\.", r"fusion.blocks.\1.mlp_vcma."),
    (r"^fusion\.video_units\.(\d+)\.self_gate\.", r"fusion.blocks.\1.lv1."),
    (r"^fusion\.video_units\.(\d+)\.cross_gate\.", r"fusion.blocks.\1.lv2."),
    (r"^fusion\.audio_units\.(\d+)\.norm\.", r"fusion.blocks.\1.norm3_1."),
    (r"^fusion\.audio_units\.(\d+)\.self_norm\.", r"fusion.blocks.\1.norm_new."),
    (r"^fusion\.audio_units\.(\d+)\.self_attn\.", r"fusion.blocks.\1.attn_new."),
    (r"^fusion\.audio_units\.(\d+)\.self_mlp_norm\.", r"fusion.blocks.\1.norm_asa."),
    (r"^fusion\.audio_units\.(\d+)\.self_mlp\.", r"fusion.blocks.\1.mlp_asa."),
    (r"^fusion\.audio_units\.(\d+)\.cross_norm\.", r"fusion.blocks.\1.cross_norm1_a."),
    (r"^fusion\.audio_units\.(\d+)\.context_norm\.", r"fusion.blocks.\1.cross_norm2_a."),
    (r"^fusion\.audio_units\.(\d+)\.cross_attn\.", r"fusion.blocks.\1.cross_attn_a."),
    (r"^fusion\.audio_units\.(\d+)\.cross_mlp_norm\.", r"fusion.blocks.\1.norm_acma."),
    (r"^fusion\.audio_units\.(\d+)\.cross_mlp\.", r"fusion.blocks.\1.mlp_acma."),
    (r"^fusion\.audio_units\.(\d+)\.self_gate\.", r"fusion.blocks.\1.la1."),
    (r"^fusion\.audio_units\.(\d+)\.cross_gate\.", r"fusion.blocks.\1.la2."),
    # IAV-CL, refinement and HAFE
    (r"^fusion\.refinement\.proj\.", "fusion.Iterative_Refinement_Module.post_extract_proj."),
    (r"^fusion\.refinement\.norm\.", "fusion.Iterative_Refinement_Module.layer_norm."),
    (r"^fusion\.refinement\.(audio|video)\.", r"fusion.Iterative_Refinement_Module.conv_\1."),
    (r"^fusion\.video_aggregation\.attn_norm\.", "fusion.norm."),
    (r"^fusion\.audio_aggregation\.attn_norm\.", "fusion.norm_audio."),
    (r"^fusion\.(v|a)\w+_aggregation\.attn\.", r"fusion.\1adaptiveinteraction."),
    (r"^fusion\.(v|a)\w+_aggregation\.weight\.", r"fusion.\1selectfusion."),
    (r"^fusion\.(v|a)\w+_aggregation\.mlp_norm\.", r"fusion.norm_att_\1."),
    (r"^fusion\.(v|a)\w+_aggregation\.mlp\.", r"fusion.mlp_att_\1."),
    (r"^fusion\.video_aggregation\.feedback_norm\.", "fusion.cross_norm_1."),
    (r"^fusion\.audio_aggregation\.feedback_norm\.", "fusion.cross_norm_3."),
    (r"^fusion\.joint_norm\.", "fusion.cross_norm_2."),
    (r"^fusion\.feedback_attn\.", "fusion.cross_attn."),
    (r"^fusion\.(v|a)\w+_aggregation\.feedback_mlp_norm\.", r"fusion.norm_att_\1_IR."),
    (r"^fusion\.(video|audio)_aggregation\.feedback_mlp\.", r"fusion.mlp_att_\1_IR."),
    # HiCMAE's fusion
    (r"^fusion\.video_blocks\.", "fusion.blocks."),
    (r"^fusion\.audio_blocks\.", "fusion.blocks_audio."),
    (r"^fusion\.video_norm\.", "fusion.norm."),
    (r"^fusion\.audio_norm\.", "fusion.norm_audio."),
    (r"^fusion\.", "encoder_fusion."),
    # plain ViT blocks, and what is left of LGI-Former's
    (r"(blocks(?:_audio)?\.\d+)\.cross_norm\.", r"\1.cross_norm1."),
    (r"(blocks(?:_audio)?\.\d+)\.context_norm\.", r"\1.cross_norm2."),
    (r"(blocks(?:_audio)?\.\d+)\.attn_norm\.", r"\1.norm1."),
    (r"(blocks(?:_audio)?\.\d+)\.mlp_norm\.", r"\1.norm2."),
]]  # fmt: skip
PACKED = re.compile(r"(first|second)_attn\.qkv\.weight$")  # one matrix here, q and kv in the released files
FRESH = ("fc_norm.", "head.", "layer_weights_")  # may be absent, or of another size, when fine-tuning starts


def released_names(name: str) -> list[str]:
    """The released names that one of our parameters or buffers goes by: one, or two where we pack q and kv."""
    for pattern, replacement in RENAMES:
        name = pattern.sub(replacement, name)
    if PACKED.search(name):
        return [name.replace("qkv.weight", "q.weight"), name.replace("qkv.weight", "kv.weight")]
    return [name]


def to_released(model: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors (of any kind: parameters, gradients, moments) under released names and in released shapes."""
    released = {}
    for name, value in values.items():
        names = released_names(name)
        if len(names) == 2:
            released[names[0]], released[names[1]] = value[: len(value) // 3], value[len(value) // 3 :]
        elif name.endswith("embed.proj.weight"):
            released[names[0]] = value.reshape(-1, *model.get_submodule(name.removesuffix(".proj.weight")).kernel)
        elif name.endswith("mask_token"):
            released[names[0]] = value[None, None]
        else:
            released[names[0]] = value
    return released


def released_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The model's parameters and buffers in the released layout."""
    return to_released(model, model.state_dict())


def released_gradients(model: nn.Module) -> dict[str, Tensor]:
    """Gradients in the released layout; zeros for parameters that cannot reach the loss and so have none."""
    return to_released(model, {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()})


@dataclass
class LoadReport:
    """What became of every tensor, under released names. ``print`` it.

    Attributes:
        source: the file.
        place: the key under which the weights were, "model" or "state.net"; "" where they were bare.
        others: the keys under which the file has further weights, which were not taken, such as an average's.
    """

    source: str
    place: str = ""
    others: list[str] = field(default_factory=list)
    matched: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)  # in the file, not in the model
    missing: list[str] = field(default_factory=list)  # in the model, not in the file: left as initialised
    resized: list[str] = field(default_factory=list)  # a head of another size: left as initialised

    def __str__(self) -> str:
        place = f" from '{self.place}'" if self.place else ""
        others = f"; not from {', '.join(map(repr, self.others))}, which is there too" if self.others else ""
        lines = [f"{self.source}: {len(self.matched)} tensors loaded{place}{others}"]
        for kind in ("dropped", "missing", "resized"):
            names = getattr(self, kind)
            if names:
                groups = Counter(n.split(".")[0] for n in names)
                lines.append(f"  {len(names)} {kind}: " + ", ".join(f"{g} ({c})" for g, c in groups.items()))
        return "\n".join(lines)


def load_released(model: nn.Module, path_or_state_dict: str | os.PathLike | Mapping[str, Tensor]) -> LoadReport:
    """Loads a checkpoint of the released layout into one of our models.

    What the model has no place for (a pre-training file's decoders, when fine-tuning) is dropped; a head or layer
    weights that the file lacks, or has in another size, stay as initialised. The report says so.

    Args:
        model: AVFMAEForPretraining, AVFMAEForFinetuning or HiCMAEForPretraining.
        path_or_state_dict: a file of ``torch.save`` with the weights under one of ``places.PLACES``, the first of them that
            is there, or bare, or in one single other place, such as ``net`` or ``state.net``; a safetensors file; or the
            state dict itself. Prefixes ``_orig_mod.``, ``module.`` and ``model.`` are taken off. Of a pickle nothing is
            executed, whatever it holds beside the weights.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is unreadable or no checkpoint; a tensor has the wrong shape; or what is missing is more
            than a head.
    """
    if isinstance(path_or_state_dict, Mapping):
        source, state = "state dict", path_or_state_dict
    else:
        source, state = str(path_or_state_dict), read_weights(path_or_state_dict, mapped=True)
    state, *places = find_weights(state, source)
    report, loaded, used = LoadReport(source, *places), {}, set()
    own = model.state_dict()
    shapes = {n: t.shape for n, t in to_released(model, {n: t.to("meta") for n, t in own.items()}).items()}
    for name, tensor in own.items():
        names = released_names(name)
        used.update(names)
        absent = [n for n in names if n not in state]
        if absent:
            report.missing += absent
            continue
        wrong = [n for n in names if state[n].shape != shapes[n]]
        if wrong and wrong[0].startswith(FRESH):
            report.resized += wrong
            continue
        if wrong:
            raise ValueError(
                f"{source}: {wrong[0]} is {tuple(state[wrong[0]].shape)}, expected {tuple(shapes[wrong[0]])}: another model size?"
            )
        loaded[name] = (
            torch.cat([state[n] for n in names]).reshape(tensor.shape)
            if len(names) > 1
            else state[names[0]].reshape(tensor.shape)
        )
        report.matched += names
    report.dropped = [n for n in state if n not in used]
    lost = [n for n in report.missing if not n.startswith(FRESH)]
    if lost:
        raise ValueError(
            f"{source}: lacks {len(lost)} of the model's tensors, {lost[0]} first; it has "
            f"{', '.join(sorted({n.split('.')[0] for n in state})) or 'nothing'}"
        )
    model.load_state_dict(loaded, strict=False)
    return report


def read_weights(path: str | os.PathLike, mapped: bool = False) -> object:
    """A checkpoint file's content: safetensors, or what ``torch.save`` wrote, of which nothing is executed.

    Args:
        mapped: tensors of ``torch.save`` are views of the file (:func:`avfmae.checkpoints.archives.read`).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty, truncated or something else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: {'is a folder, expected a checkpoint' if path.is_dir() else 'no such checkpoint'}")
    if not path.stat().st_size:
        raise ValueError(f"{path}: is no readable checkpoint: the file is empty")
    if other := _what_else(path):
        raise ValueError(f"{path}: {other}")
    try:
        return safetensors.torch.load_file(path) if path.suffix == ".safetensors" else archives.read(path, mapped)
    except Exception as error:  # both readers raise a dozen kinds
        reason = next(iter(str(error).splitlines()), "")[:200] or type(error).__name__
        raise ValueError(f"{path}: is no readable checkpoint: {reason}") from error


def _what_else(path: Path) -> str | None:
    """What a file is that often lies where a checkpoint should, and why, by how it begins."""
    with open(path, "rb") as file:
        start = file.read(512)
    if start.startswith(b"version https://git-lfs"):
        return "is a git-lfs pointer: the file itself was not fetched"
    if start.startswith(b"\x1f\x8b"):
        return "is a gzip file: unpack it first"
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(b"<") and (b"<html" in text or b"<!doctype html" in text):
        return "is an HTML page: the download failed"
    return None


def save_weights(model: nn.Module, path: str | os.PathLike, **about: object) -> None:
    """Writes the model as safetensors in the released layout, its configuration and ``about`` in the file's metadata."""
    metadata = {"config": json.dumps(asdict(model.cfg)), **{k: json.dumps(v) for k, v in about.items()}}
    tensors = {n: t.detach().cpu().contiguous() for n, t in released_state_dict(model).items()}
    with atomic_write(path) as temporary:
        safetensors.torch.save_file(tensors, temporary, metadata)


def read_about(path: str | os.PathLike) -> dict:
    """The metadata of a file that :func:`save_weights` wrote: ``config`` as a ModelConfig, the rest as it was given."""
    if Path(path).is_file() and (other := _what_else(Path(path))):
        raise ValueError(f"{path}: {other}")
    try:
        with safetensors.safe_open(path, "pt") as file:
            about = {k: json.loads(v) for k, v in (file.metadata() or {}).items()}
    except Exception as error:
        raise ValueError(f"{path}: is no readable safetensors checkpoint ({error})") from error
    if "config" not in about:
        raise ValueError(f"{path}: carries no model configuration; was it written by avfmae?")
    config = about["config"]
    for modality in ("video", "audio"):
        config[modality] = ModalityConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in config[modality].items()})
    about["config"] = ModelConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in config.items()})
    return about
