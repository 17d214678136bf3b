"""Checkpoints of several processes (torch.distributed.checkpoint): each writes its part, and any number of processes reads them.

Beside torch's files, of which ``.metadata`` is a pickle that reading executes, ``state.json`` says where the run stands.
"""

import json
import shutil
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any
from zlib import crc32

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException

from avfmae.checkpoints.state import STATE_JSON, TrainingState, cannot_be_written, load_checkpoint, publish
from avfmae.world import rank, world_size


class Writer:
    """Writes checkpoints in the background, while training goes on; one after the other.

    Args:
        folder: of the run's checkpoints.
    """

    def __init__(self, folder: Path):
        self.folder, self.pending = folder, None
        self.rank, self.world = rank(), world_size()
        self.is_main = self.rank == 0
        # of its own, since training talks meanwhile; torch's types have a number there for those who are no members
        self.group: Any = dist.new_group(backend="gloo") if self.world > 1 else None
        self.waits = ThreadPoolExecutor(1)

    def save(self, model: nn.Module, optimiser: Any, state: TrainingState, averaged: Sequence[Tensor]) -> None:
        """Copies all that is saved, and begins to write ``folder/step-NNNNNNNN``; the folder appears when all have written."""
        self.finish()
        temporary = self.folder / f".writing-{state.step}"
        try:
            if self.is_main:
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)
                told = {"state": asdict(state), "averaged": bool(averaged)}
                (temporary / STATE_JSON).write_text(json.dumps(told))
            if self.group is not None:
                dist.barrier(self.group)
            content = tensors(model, optimiser, averaged)
            with warnings.catch_warnings():  # that there is one process, which is meant
                warnings.simplefilter("ignore", UserWarning)
                written = dcp.async_save(content, checkpoint_id=temporary, process_group=self.group, no_dist=self.group is None)
            assert isinstance(written, Future)
        except OSError as error:
            raise cannot_be_written(self.folder, error) from error
        self.pending = self.waits.submit(self._publish, written, temporary, self.folder / f"step-{state.step:08d}")

    def _publish(self, written: Future, temporary: Path, final: Path) -> None:
        """Waits for this process's files, gives each its checksum, and once all have done so puts the folder in its place."""
        written.result()
        for file in temporary.glob(f"__{self.rank}_*.distcp"):
            file.with_suffix(".crc32").write_text(_checksum(file))
        if self.group is not None:
            dist.barrier(self.group)
        if self.is_main:
            publish(temporary, final)

    def finish(self) -> None:
        """Waits until what was begun is there, on every process."""
        if self.pending is None:
            return
        pending, self.pending = self.pending, None
        try:
            pending.result()
        except (OSError, RuntimeError, CheckpointException) as error:
            raise cannot_be_written(self.folder, error) from error
        if self.group is not None:
            dist.barrier(self.group)


def tensors(model: nn.Module, optimiser: Any, averaged: Sequence[Tensor]) -> dict[str, Tensor]:
    """All that is saved, by name: weights, moments (made where there are none) and averages. Moments are float32.

    Args:
        optimiser: an ``avfmae.training.optim.AdamW``.
    """
    found = {f"model.{name}": tensor.detach() for name, tensor in model.state_dict().items()}
    names = [name for group in optimiser.param_groups for name in group["names"]]
    for param in (p for group in optimiser.param_groups for p in group["params"] if p.requires_grad):
        optimiser.state_of(param)
    for number, moments in optimiser.state_dict()["state"].items():
        found |= {f"optimiser.{names[number]}.{name}": tensor for name, tensor in moments.items()}
    parameters = [name for name, _ in model.named_parameters()]
    return found | {f"averaged.{name}": tensor for name, tensor in zip(parameters, averaged, strict=bool(averaged))}


def load(
    path: Path, model: nn.Module, optimiser: Any, averaged: Sequence[Tensor], accept: Callable[[dict], None]
) -> TrainingState:
    """As :func:`avfmae.checkpoints.state.load_checkpoint`, of checkpoints of both kinds; every process reads what it holds."""
    if not (path / STATE_JSON).exists():
        return load_checkpoint(path, model, optimiser, averaged, accept)
    try:
        told = json.loads((path / STATE_JSON).read_text())
        saved = TrainingState(**told["state"])
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path / STATE_JSON}: holds no state of training ({error!r})") from error
    accept(saved.fingerprint)
    if broken := _damaged(path):
        raise ValueError(f"{broken}: is no readable checkpoint: its bytes do not give the checksum that was saved with them")
    try:
        wanted = tensors(model, optimiser, averaged if told["averaged"] else ())
        with warnings.catch_warnings():  # as in Writer.save
            warnings.simplefilter("ignore", UserWarning)
            dcp.load(wanted, checkpoint_id=path, no_dist=not dist.is_initialized())
    except (CheckpointException, RuntimeError, ValueError, OSError, EOFError) as error:
        reason = next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
        raise ValueError(f"{path}: is no readable checkpoint of this model: {reason.strip()}") from error
    if averaged and not told["averaged"]:  # an average that was not kept before begins with the weights
        for kept, param in zip(averaged, model.parameters(), strict=True):
            kept.copy_(param.detach())
    return saved


def _damaged(path: Path) -> Path | None:
    """The first file of a checkpoint that is not as it was written, or None; the processes share the work, and agree."""
    world = world_size()
    mine = sorted(path.glob("*.distcp"))[rank() :: world]
    told = [file.with_suffix(".crc32") for file in mine]
    found = [file for file, crc in zip(mine, told, strict=True) if not crc.exists() or crc.read_text() != _checksum(file)]
    everywhere: list[list[Path]] = [found]
    if world > 1:
        everywhere *= world
        dist.all_gather_object(everywhere, found)
    return next((file for files in everywhere for file in files), None)


def _checksum(file: Path) -> str:
    total = 0
    with open(file, "rb") as content:
        while part := content.read(2**24):
            total = crc32(part, total)
    return f"{total:08x}"
