"""Weights on disk: always the released layout, whatever a module packs together in memory.

:func:`load_released` reads the published files (pickles, of which nothing is executed: :mod:`avfmae.checkpoints.pickles`) and
this project's own (safetensors with the same names); :func:`released_state_dict` gives any of our models in that layout.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from zlib import crc32

import safetensors.torch
import torch
from torch import Tensor, nn

from avfmae.checkpoints import archives
from avfmae.checkpoints.encoders import as_ours
from avfmae.checkpoints.places import find_weights
from avfmae.config import MODALITIES, ModalityConfig, ModelConfig
from avfmae.files import atomic_write, printable
from avfmae.models.lora import merged_state
from avfmae.models.released import released_names, to_released

CHECKSUM = "checksum"  # in a file's metadata: of the metadata, and of the tensors
DAMAGED = "it is damaged: its bytes do not give the checksum that was saved with them"


def released_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The model's parameters and buffers in the released layout."""
    return to_released(model, merged_state(model))


def released_gradients(model: nn.Module) -> dict[str, Tensor]:
    """Gradients in the released layout; zeros for parameters that cannot reach the loss and so have none."""
    return to_released(model, {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()})


@dataclass
class LoadReport:
    """What became of every tensor, under released names. ``print`` it."""

    source: str  # the file
    place: str = ""  # the key under which the weights were, "model" or "state.net"; "" where they were bare
    others: list[str] = field(default_factory=list)  # keys of further weights, such as an average's, which were not taken
    matched: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)  # in the file, not in the model
    missing: list[str] = field(default_factory=list)  # in the model, not in the file: left as initialised
    resized: list[str] = field(default_factory=list)  # a head of another size: left as initialised
    notes: list[str] = field(default_factory=list)  # what was changed of an encoder of another project

    def __str__(self) -> str:
        place = f" from '{self.place}'" if self.place else ""
        others = f"; not from {', '.join(map(repr, self.others))}, which is there too" if self.others else ""
        lines = [f"{self.source}: {len(self.matched)} tensors loaded{place}{others}"]
        for kind in ("dropped", "missing", "resized"):
            if names := getattr(self, kind):
                lines.append(f"  {len(names)} {kind}: {_groups(names)}")
        return "\n".join(map(printable, lines + [f"  {note}" for note in self.notes]))


def _groups(names: Iterable[str]) -> str:
    """The parts that names begin with, each with the number of its names."""
    groups = Counter(n.split(".")[0] for n in names)
    return ", ".join(f"{g[:40]} ({c})" for g, c in groups.most_common(16)) or "nothing"


def load_released(model: nn.Module, path_or_state_dict: str | os.PathLike | Mapping[str, Tensor]) -> LoadReport:
    """Loads a checkpoint of the released layout into one of our models.

    What the model has no place for (a pre-training file's decoders, when fine-tuning) is dropped; a head or layer
    weights that the file lacks, or has in another size, stay as initialised; and so do decoders where the file has an encoder
    alone, of ours, of VideoMAE or of AudioMAE. Position tables in the file are resampled to the model's grid. The report says so.

    Args:
        model: AVFMAEForPretraining or AVFMAEForFinetuning.
        path_or_state_dict: a file of ``torch.save`` with the weights under one of ``places.PLACES``, the first of them that
            is there, or in one single other place, such as ``student`` or ``state.net``; a module that was saved whole; a
            safetensors file; or the state dict itself. Names are the released ones or the model's own; what stands before
            all of them, such as ``module.``, ``_orig_mod.`` or ``model.backbone.``, is taken off. Of a pickle nothing is
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
    fresh = getattr(model, "FRESH", ())  # a decoder's head is not to be taken for a fresh one
    names = {n for name in model.state_dict() if not name.startswith(fresh) for n in released_names(model, name)}
    state, *places = find_weights(state, source, names | {n for n in model.state_dict() if not n.startswith(fresh)})
    state, notes = as_ours(model, state, names)
    own = model.state_dict()
    shapes = {n: t.shape for n, t in to_released(model, {n: t.to("meta") for n, t in own.items()}).items()}
    if len(own.keys() & state.keys()) > len(shapes.keys() & state.keys()):  # a model's own state dict
        resized = [n for n in own if n in state and state[n].shape != own[n].shape]
        if wrong := next((n for n in resized if not n.startswith(fresh)), None):
            raise ValueError(_other_size(source, wrong, state[wrong].shape, own[wrong].shape))
        state = to_released(model, {n: state[n] for n in own if n in state and n not in resized}) | {
            n: t for n, t in state.items() if n not in own or n in resized
        }
    parts = {f"{n.partition('.')[0]}." for n in own if any(r in state for r in released_names(model, n))}
    if parts and all(part.endswith("_encoder.") for part in parts):
        fresh = (*fresh, *(f"{m}_{part}." for m in MODALITIES for part in ("decoder", "encoder.norm")))
    report, loaded, used, lost = LoadReport(source, *places, notes=notes), {}, set(), []
    for name, tensor in own.items():
        names = released_names(model, name)
        used.update(names)
        if absent := [n for n in names if n not in state]:
            report.missing += absent
            lost += [] if name.startswith(fresh) else absent
        elif wrong := [n for n in names if state[n].shape != shapes[n]]:
            report.resized += wrong
            if not name.startswith(fresh):
                raise ValueError(_other_size(source, wrong[0], state[wrong[0]].shape, shapes[wrong[0]]))
        else:
            values = [state[n] for n in names]
            loaded[name] = (torch.cat(values) if len(values) > 1 else values[0]).reshape(tensor.shape)
            report.matched += names
    report.dropped = [n for n in state if n not in used]
    if lost:
        has = printable(_groups(state))
        raise ValueError(f"{source}: lacks {len(lost)} of the model's {len(shapes)} tensors, {lost[0]} first; it has {has}")
    model.load_state_dict(loaded, strict=False)
    return report


def _other_size(source: str, name: str, got: torch.Size, expected: torch.Size) -> str:
    return f"{source}: {name} is {tuple(got)}, expected {tuple(expected)}: another model size?"


def read_weights(path: str | os.PathLike, mapped: bool = False) -> object:
    """A checkpoint file's content: safetensors, or what ``torch.save`` wrote, of which nothing is executed.

    ``mapped``: tensors of ``torch.save`` are views of the file. ValueError: it is empty, truncated or something else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: {'is a folder, expected a checkpoint' if path.is_dir() else 'no such checkpoint'}")
    if not path.stat().st_size:
        raise ValueError(f"{path}: is no readable checkpoint: the file is empty")
    if other := _what_else(path):
        raise ValueError(f"{path}: {other}")
    try:
        return _read_safetensors(path) if _is_safetensors(path) else archives.read(path, mapped)
    except Exception as error:  # both readers raise a dozen kinds
        reason = printable(next(iter(str(error).splitlines()), "")[:200]) or type(error).__name__
        raise ValueError(f"{path}: is no readable checkpoint: {reason}") from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    tensors = safetensors.torch.load_file(path)
    with safetensors.safe_open(path, "pt") as file:
        stored = (file.metadata() or {}).get(CHECKSUM)
    if stored is not None and stored.split()[-1] != _checksum(tensors):
        raise ValueError(DAMAGED)
    return tensors


def _checksum(content: Mapping[str, Tensor] | Mapping[str, str]) -> str:
    """CRC-32 of tensors, with their names, types and shapes, or of a metadata's texts."""
    total = 0
    for name in sorted(content.keys() - {CHECKSUM}):
        value = content[name]
        about = value if isinstance(value, str) else f"{value.dtype} {tuple(value.shape)}"
        total = crc32(f"{name} {about}".encode(), total)
        if isinstance(value, Tensor):
            total = crc32(value.reshape(-1).view(torch.uint8).numpy(), total)
    return f"{total:08x}"


def _is_safetensors(path: Path) -> bool:
    """By the file's content, where that tells; a name may be wrong."""
    with open(path, "rb") as file:
        start = file.read(9)
    return start[8:] == b"{" or (path.suffix == ".safetensors" and not start.startswith(archives.ZIP))


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


def save_weights(model: nn.Module, path: str | os.PathLike, merged: bool = True, **about: object) -> None:
    """Writes the model as safetensors in the released layout, its configuration and ``about`` in the file's metadata.

    ``merged``: low-rank updates are added to their weights; else they are written by themselves, for training to go on.
    """
    metadata = {"config": json.dumps(asdict(model.cfg)), **{k: json.dumps(v) for k, v in about.items()}}
    tensors = {
        n: t.detach().cpu().contiguous()
        for n, t in to_released(model, merged_state(model) if merged else model.state_dict()).items()
    }
    metadata[CHECKSUM] = f"{_checksum(metadata)} {_checksum(tensors)}"
    with atomic_write(path) as temporary:
        safetensors.torch.save_file(tensors, temporary, metadata)
        _put_in_order(temporary)


def _put_in_order(path: Path) -> None:
    """Sorts a file's metadata, which safetensors writes in another order each time: by the bytes of its initial weights a run
    that continues is told from another one."""
    with open(path, "rb+") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode().ljust(size)
        assert len(text) == size
        file.seek(8)
        file.write(text)


def read_about(path: str | os.PathLike) -> dict:
    """The metadata of a file that :func:`save_weights` wrote: ``config`` as a ModelConfig, the rest as it was given."""
    if Path(path).is_file() and (other := _what_else(Path(path))):
        raise ValueError(f"{path}: {other}")
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        if metadata.get(CHECKSUM, "").split()[:1] not in ([], [_checksum(metadata)]):
            raise ValueError(DAMAGED)
        about = {k: json.loads(v) for k, v in metadata.items() if k != CHECKSUM}
    except Exception as error:
        raise ValueError(f"{path}: is no readable safetensors checkpoint ({error})") from error
    if "config" not in about and (beside := Path(path).with_name("config.json")).is_file():  # re-written by another tool
        about = json.loads(beside.read_text())
    if "config" not in about:
        raise ValueError(f"{path}: carries no model configuration; was it written by avfmae?")
    try:
        about["config"] = _config(about["config"], about.pop("modalities", MODALITIES))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: its model configuration is not understood ({error!r})") from error
    return about


def _config(values: dict, seen: Sequence[str]) -> ModelConfig:
    """From a file's metadata. ``seen``: the modalities, in a file from before they were the configuration's."""
    config = _with_tuples(values)
    modalities = {m: ModalityConfig(**_with_tuples(config[m])) for m in MODALITIES}
    if config.pop("family", None) == "hicmae":  # a file from before encoders had names
        config |= {"encoder": "vit", "fusion": "cross", "balanced_masks": False, "decoder_masks": False}
        modalities = {name: replace(m, decoded=m.tokens - m.visible) for name, m in modalities.items()}
    if "decoder_depth" not in config:  # and from before the fourth stage had a name
        config |= {"decoder_depth": 1 + len(config["skip_blocks"]), "modalities": tuple(seen)}
        config["encoder"] = {"lgi": "lgi4"}.get(config.get("encoder", "lgi"), config.get("encoder"))
    return ModelConfig(**config | modalities)


def _with_tuples(values: dict) -> dict:
    """In the place of lists, which is what JSON makes of them."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
