"""Processes and devices: what torchrun started, or one process alone."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Processes:
    """This process (``rank`` of ``world``) and its device."""

    rank: int
    world: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def gather(self, item: Any) -> list[Any]:
        """Every process's item, everywhere, in order of rank."""
        if self.world == 1:
            return [item]
        items: list[Any] = [None] * self.world
        dist.all_gather_object(items, item)
        return items

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier()


def store_of_attempt() -> dist.Store:
    """Where processes find each other. Torchrun starts a group anew with the store of the one that died, addresses included, so
    names get the number of the attempt. Nodes count attempts differently: of several, torchrun is told to take new stores
    (TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, as train/slurm.sh does)."""
    store, _, _ = next(dist.rendezvous("env://"))
    alone = os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]
    return dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if alone else "", store)


@contextmanager
def processes() -> Iterator[Processes]:
    """Joins the process group that torchrun announces in the environment; without one, this process is the world."""
    world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    ours = world > 1 and not dist.is_initialized()
    if ours:
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo", store=store_of_attempt(), rank=rank, world_size=world
        )
    try:
        yield Processes(rank, world, device)
        if ours:
            dist.barrier()  # a process that leaves while another still talks to it can end in an abort
    finally:
        if ours:
            dist.destroy_process_group()
