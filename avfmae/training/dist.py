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
    """Averages gradients over processes while backward goes on: a bucket params as soon as its last gradient is there.

    Args:
        params: what gradients are taken of, in the order of their use.
    """

    def __init__(self, params: Sequence[Tensor]):
        self.params, self.active = list(params), False
        self.buckets: list[list[Tensor]] | None = None  # known after the first backward: not every param gets a gradient
        for param in self.params:
            param.register_post_accumulate_grad_hook(self.arrived)

    @contextmanager
    def during(self, active: bool) -> Iterator[None]:
        """Around a forward and backward pass; only the last one of a step sends, all of what has accumulated."""
        self.active, self.sent, self.left = active, [], []
        if self.buckets:
            self.left, self.missing = list(self.buckets), [len(b) for b in self.buckets]
        yield
        if not active:
            return
        if self.buckets is None:
            self.buckets = self.cut([param for param in reversed(self.params) if param.grad is not None])
            self.bucket_of = {param: k for k, bucket in enumerate(self.buckets) for param in bucket}
            self.left = list(self.buckets)
        while self.left:
            self.send(self.left.pop(0))
        for bucket, flat, work in self.sent:
            work.wait()
            parts = (flat / dist.get_world_size()).split([param.numel() for param in bucket])
            torch._foreach_copy_(
                [param.grad for param in bucket], [p.view_as(param) for p, param in zip(parts, bucket, strict=True)]
            )

    def arrived(self, param: Tensor) -> None:
        if not self.active or self.buckets is None:
            return
        if param not in self.bucket_of:
            raise RuntimeError("a parameter has a gradient that had none in the first step; its processes would drift apart")
        self.missing[self.bucket_of[param]] -= 1
        while self.left and self.missing[len(self.buckets) - len(self.left)] == 0:  # in the same order everywhere
            self.send(self.left.pop(0))

    def send(self, bucket: list[Tensor]) -> None:
        flat = torch.cat([param.grad.flatten() for param in bucket])
        self.sent.append((bucket, flat, dist.all_reduce(flat, async_op=True)))

    @staticmethod
    def cut(params: list[Tensor]) -> list[list[Tensor]]:
        """Consecutive params of one dtype, about BUCKET bytes together."""
        buckets: list[list[Tensor]] = []
        size = 0
        for param in params:
            if not buckets or size >= BUCKET or buckets[-1][0].dtype != param.dtype:
                buckets.append([])
                size = 0
            buckets[-1].append(param)
            size += param.numel() * param.element_size()
        return buckets


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
            dist.barrier()  # a process that params while another still talks to it can end in an abort
    finally:
        if ours:
            dist.destroy_process_group()
