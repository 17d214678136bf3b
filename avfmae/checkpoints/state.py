"""Checkpoints of a run: a folder of weights and training state that appears whole or not at all."""

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from avfmae.checkpoints.weights import load_released, read_weights, save_weights
from avfmae.files import atomic_write

WEIGHTS, STATE = "weights.safetensors", "state.pt"
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
    temporary = Path(tempfile.mkdtemp(dir=folder, prefix=".writing-"))
    save_weights(model, temporary / WEIGHTS)
    content = {"optimiser": optimiser.state_dict(), "state": asdict(state), "averaged": list(averaged)}
    with atomic_write(temporary / STATE) as file:
        torch.save(content, file)
    final = folder / f"step-{state.step:08d}"
    if final.exists():  # an interrupted run saves the step that it resumed from once more
        shutil.rmtree(final)
    temporary.replace(final)
    for old in checkpoints(folder)[:-KEEP]:
        shutil.rmtree(old)
    for dead in folder.glob(".writing-*"):
        shutil.rmtree(dead)
    return final


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return sorted(folder.glob("step-*"))


def load_checkpoint(
    path: Path, model: nn.Module, optimiser: torch.optim.Optimizer, averaged: Sequence[Tensor] = ()
) -> TrainingState:
    """Puts a checkpoint's weights, moments and averages back. ValueError: a file is unreadable or does not fit the model."""
    load_released(model, path / WEIGHTS)
    content = read_weights(path / STATE)
    try:
        optimiser.load_state_dict(content["optimiser"])
        if averaged:  # an average that was not kept before begins with the weights
            saved = content.get("averaged") or [p.detach() for p in model.parameters()]
            torch._foreach_copy_(list(averaged), saved)
        return TrainingState(**content["state"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path / STATE}: does not fit this run ({error})") from error
