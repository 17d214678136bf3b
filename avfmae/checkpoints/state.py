"""Checkpoints of a run: a folder of weights and training state that appears whole or not at all."""

import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from avfmae.checkpoints.weights import load_released, read_weights, save_weights
from avfmae.files import atomic_write

WEIGHTS, STATE = "weights.safetensors", "state.pt"
STATE_JSON = "state.json"  # of a distributed checkpoint (:mod:`avfmae.checkpoints.distributed`)
KEEP = 2


@dataclass
class TrainingState:
    """Where a run stands, besides weights and the optimiser's moments."""

    step: int = 0  # optimiser steps done, skipped ones included; the next one's batches, masks and noise follow from it
    skipped: int = 0  # steps left out because something was not finite
    in_a_row: int = 0  # of these, the latest without a good one between
    history: list[dict] = field(default_factory=list)  # what evaluations found: a dict an evaluated epoch
    fingerprint: dict = field(default_factory=dict)  # what the sequence of batches depends on; a run continues only its own kind


def save_checkpoint(
    folder: Path, model: nn.Module, optimiser: torch.optim.Optimizer, state: TrainingState, averaged: Sequence[Tensor] = ()
) -> Path:
    """Writes ``folder/step-NNNNNNNN`` atomically and keeps the newest two."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".writing-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        save_weights(model, temporary / WEIGHTS, merged=False)
        content = {"optimiser": optimiser.state_dict(), "state": asdict(state), "averaged": list(averaged)}
        with atomic_write(temporary / STATE) as file:
            torch.save(content, file)
    except (OSError, RuntimeError, SafetensorError) as error:  # of a full disk both libraries speak in their own words
        shutil.rmtree(temporary, ignore_errors=True)
        raise cannot_be_written(folder, error) from error
    return publish(temporary, folder / f"step-{state.step:08d}")


def cannot_be_written(folder: Path, error: BaseException) -> OSError:
    free = shutil.disk_usage(folder).free / 1e6
    return OSError(f"{folder}: a checkpoint cannot be written, with {free:.0f} MB free ({error})")


def publish(temporary: Path, final: Path) -> Path:
    """Puts a checkpoint that is written whole in its place, and takes away what is old or unfinished."""
    folder = final.parent
    former = folder / f"{final.name}.old"  # which is read where the process ends before the new one is there
    if final.exists():  # a run that went on from an earlier step saves this one once more
        shutil.rmtree(former, ignore_errors=True)
        final.replace(former)
    temporary.replace(final)
    shutil.rmtree(former, ignore_errors=True)
    for old in checkpoints(folder)[:-KEEP]:
        shutil.rmtree(old)
    for dead in folder.glob(".writing-*"):
        shutil.rmtree(dead)
    return final


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoints, oldest first."""
    found = [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d+(\.old)?", path.name) and path.is_dir()]
    return sorted(found, key=lambda path: (int(path.name[5:].removesuffix(".old")), path.suffix != ".old"))


def load_checkpoint(
    path: Path, model: nn.Module, optimiser: torch.optim.Optimizer, averaged: Sequence[Tensor] = (),
    accept: Callable[[dict], None] = lambda fingerprint: None,
) -> TrainingState:  # fmt: skip
    """Puts a checkpoint's weights, moments and averages back, after ``accept`` has seen its fingerprint.

    ValueError: a file is unreadable or does not fit the model.
    """
    if any(hasattr(p, "full_tensor") for p in model.parameters()):
        raise ValueError(f"{path}: was written by one process, expected one of several with parallel='fsdp'; go on with 'ddp'")
    content = read_weights(path / STATE)
    try:
        saved = TrainingState(**content["state"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path / STATE}: holds no state of training ({error!r})") from error
    accept(saved.fingerprint)
    load_released(model, path / WEIGHTS)
    try:
        optimiser.load_state_dict(content["optimiser"])
        if averaged:  # an average that was not kept before begins with the weights
            kept = content.get("averaged") or [p.detach() for p in model.parameters()]
            torch._foreach_copy_(list(averaged), kept)
        return saved
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path / STATE}: does not fit this run ({error})") from error
