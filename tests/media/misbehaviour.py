"""What data workers are given in tests: in a module of its own, which the processes can import."""

import os
import time
from dataclasses import dataclass

import torch

from avfmae.data.dataset import ClipDataset


@dataclass
class Tensors:
    """Something with tensors in it."""

    a: torch.Tensor
    b: torch.Tensor
    name: str

    def map(self, function):
        return Tensors(function(self.a), function(self.b), self.name)


def misbehave(task, context):
    """Does what the task says."""
    what, number = task
    context.note(number)
    if what == "hang":
        time.sleep(600)
    if what == "die":
        os.kill(os.getpid(), 11)
    if what.startswith("killed") or what.startswith("full"):
        _, _, once = what.partition(" ")
        if not once or not os.path.exists(once):
            if once:
                open(once, "w").close()
            if what.startswith("killed"):
                os.kill(os.getpid(), 9)
            raise OSError(24, "Too many open files")
    if what == "fail":
        raise KeyError("no such thing")
    if what == "fails in place":
        context.empty((number, 5))
        raise KeyError("no such thing")
    if what == "in place":
        there = torch.from_numpy(context.empty((number, 5)))
        there[:] = number % 251
        return Tensors(there, torch.full((3,), number), what)
    if what == "tensors":
        return Tensors(torch.full((number, 3), number % 256, dtype=torch.uint8), torch.arange(number).float()[None], what)
    return what, number, os.getpid()


def make_misbehave():
    return misbehave


def never_starts():
    os._exit(3)


class Troubled(ClipDataset):
    """Reads clips, but hangs at some and dies of others."""

    def read(self, clip, epoch):
        if clip.id == 5:
            time.sleep(600)
        if clip.id == 9:
            os.kill(os.getpid(), 11)
        return super().read(clip, epoch)
