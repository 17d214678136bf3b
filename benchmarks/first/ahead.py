"""Triton kernels compiled by all cores before a step asks for them; the first step would compile them one after the other.

A step of each model is run with its launches noted down instead of made. Each of them is then put to Triton as the launcher would
put it, by a process that takes a description for the GPU, so that what it leaves in Triton's cache is what the launcher looks
for.
"""

import importlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import avfmae_kernels as K
from avfmae_benchmarks.first.process import die_with_parent
from avfmae_benchmarks.sides import OPTIM, Model, Stage, config, finetuning_loss, host_batch, our_model
from avfmae_kernels import dispatch


@dataclass(frozen=True)
class Request:
    """One compilation: a kernel's place, the dtypes of its tensors and its numbers, its constants with one configuration's."""

    module: str
    name: str
    args: tuple
    constants: tuple[tuple[str, object], ...]


def of_step(stage: Stage, model: Model, precision: str, batch: int, device: torch.device) -> list[Request]:
    """What a step's forward and backward would compile; ``batch`` need only divide by 16 where the real one does."""
    from avfmae.tasks.reconstruction import pretraining_loss
    from avfmae.training.step import TrainingStep

    cfg = config("ours", stage, model)
    loss = pretraining_loss if stage == "pretrain" else finetuning_loss
    step = TrainingStep(our_model(cfg, stage).to(device), loss, OPTIM, 100, 10, precision=precision)
    clips = host_batch(cfg, stage, batch).to(device)

    def work():
        with step.params.in_use(), torch.autocast(step.device.type, step.dtype, enabled=step.dtype != torch.float32):
            step.loss(step.forward, clips)[0].backward()

    return of(work)


def of(work: Callable[[], None]) -> list[Request]:
    """What ``work()`` would compile if every op ran in Triton, where it has a kernel."""
    for op in dispatch.OPS.values():
        if op.triton:
            dispatch.load_triton(op.name, op.triton)
    from avfmae_kernels.triton_tools import recorded

    automatic = dispatch.AUTOMATIC
    dispatch.AUTOMATIC = {
        place: ("triton", *order) if dispatch.OPS[place[0]].triton else order for place, order in automatic.items()
    }
    try:
        with K.use("auto"), recorded() as launches:
            work()
    finally:
        dispatch.AUTOMATIC = automatic
    requests = {}
    for launch in launches:
        function = launch.kernel.fn
        args = tuple(a.dtype if isinstance(a, Tensor) else a for a in launch.args)
        for configuration in launch.configurations:
            request = Request(function.__module__, function.__name__, args, tuple((launch.constants | configuration).items()))
            requests[repr(request)] = request
    launches.clear()
    return list(requests.values())


class Description:
    """Stands in for Triton's driver: names a GPU, and has none."""

    def __init__(self, arch: int):
        from triton.backends.compiler import GPUTarget

        self.target = GPUTarget("cuda", arch, 32)

    def get_current_target(self):
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def take_for(arch: int) -> None:
    """This process compiles for GPUs of a compute capability, whether it has one or not."""
    from triton.runtime import driver

    die_with_parent()
    description: Any = Description(arch)  # has what the compiler asks of a driver, and no more
    driver.set_active(description)


def compile_one(request: Request):
    """Puts a request to Triton, which looks into its cache, compiles, and keeps."""
    kernel = getattr(importlib.import_module(request.module), request.name)
    return kernel.warmup(*request.args, grid=(1,), **dict(request.constants))


def _told(request: Request) -> str | None:
    try:
        compile_one(request)
        return None
    except Exception as error:  # of any of Triton's passes: it is told, and the other kernels are compiled
        return f"{request.name} {dict(request.constants)}: {type(error).__name__}: {str(error).strip().splitlines()[:1]}"


def compile_all(requests: Iterable[Request], arch: int, jobs: int | None = None) -> Iterator[str | None]:
    """Compiles on all cores. Gives None for each that is done, or why it failed."""
    import multiprocessing

    spawned = multiprocessing.get_context("spawn")  # a forked child of a process that has a GPU may not touch it
    with ProcessPoolExecutor(jobs or os.cpu_count(), mp_context=spawned, initializer=take_for, initargs=(arch,)) as pool:
        for done in as_completed([pool.submit(_told, request) for request in requests]):
            yield done.result()
