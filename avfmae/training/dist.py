"""Processes and devices: what torchrun started, or one process alone."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

BUCKET = 25_000_000  # bytes that are sent at a time


@dataclass(frozen=True)
class Processes:
    """This process (``rank`` of ``world``) and its device."""

    rank: int
    world: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, values: list[float]) -> list[float]:
        """Element-wise over all processes."""
        if self.world == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return tensor.tolist()

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


class GradientAverage:
    """Averages gradients over processes while backward goes on: a bucket leaves as soon as it is full.

    Every process must take the same gradients in the same order, as those of one model with one configuration do.

    Args:
        params: what gradients are taken of.
    """

    def __init__(self, params: Sequence[Tensor]):
        self.active = False
        for param in params:
            if param.requires_grad:
                param.register_post_accumulate_grad_hook(self.arrived)

    @contextmanager
    def during(self, active: bool) -> Iterator[None]:
        """Around a forward and backward pass; only the last one of a step sends, all of what has accumulated."""
        self.active, self.bucket, self.sent = active, [], []
        yield
        self.active = False
        if self.bucket:
            self.send()
        for bucket, flat, work in self.sent:
            work.wait()
            parts = (flat / dist.get_world_size()).split([param.numel() for param in bucket])
            parts = [part.view_as(param) for part, param in zip(parts, bucket, strict=True)]
            torch._foreach_copy_([param.grad for param in bucket], parts)

    def arrived(self, param: Tensor) -> None:
        """Takes note of a gradient that autograd has completed."""
        if not self.active:
            return
        if self.bucket and self.bucket[0].dtype != param.dtype:
            self.send()
        self.bucket.append(param)
        if sum(p.nbytes for p in self.bucket) >= BUCKET:
            self.send()

    def send(self) -> None:
        flat = torch.cat([param.grad.flatten() for param in self.bucket])
        self.sent.append((self.bucket, flat, dist.all_reduce(flat, async_op=True)))
        self.bucket = []


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
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(rank, world, device)
        if ours:
            dist.barrier()  # a process that leaves while another still talks to it can end in an abort
    finally:
        if ours:
            dist.destroy_process_group()
