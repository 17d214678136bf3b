"""The whole step as one CUDA graph: a GPU gets a thousand kernels in one launch, and never waits for Python."""

import traceback
from collections.abc import Callable, Hashable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from avfmae.data.batch import Batch
from avfmae.engines import Step, say
from avfmae.engines.captured import EAGER_STEPS, Captured, draws_while_recomputing

T = TypeVar("T")


def engine(step) -> Step:
    """A :class:`avfmae.training.step.TrainingStep` as a CUDA graph."""
    if step.device.type != "cuda":
        say("cuda_graph", f"needs a GPU, and the model is on the {step.device.type}; steps run eagerly")
    elif draws_while_recomputing(step.model):
        say("cuda_graph", "stochastic depth with recomputed blocks cannot be captured; steps run eagerly")
    elif step.shared.casts:
        say("cuda_graph", "weights that are gathered for each block cannot be captured (parallel='fsdp'); steps run eagerly")
    else:
        # NCCL and DistributedDataParallel want 11 steps to set themselves up; not yet run on several GPUs
        return CudaGraph(step, step.device, step.signature, EAGER_STEPS if step.world == 1 else 11)
    return step


class CudaGraph(Captured):
    """A CUDA graph with memory of its own. A step that cannot be captured runs eagerly, and one line says why."""

    def __init__(
        self, step: Step, device: torch.device, signature: Callable[[], Hashable] = lambda: None, eager_steps: int = EAGER_STEPS
    ):
        super().__init__(step, signature, eager_steps)
        self.stream = torch.cuda.Stream(device)

    def forget(self) -> None:
        super().forget()
        self.graph = None  # and its memory

    def eagerly(self, batches: Sequence[Batch]) -> dict[str, Tensor]:
        with self.on_stream():
            return self.step(batches)

    def capture(self, batches: Sequence[Batch]) -> dict[str, Tensor]:
        inputs = [batch.map(torch.clone) for batch in batches]
        try:
            self.graph, self.outputs = captured(lambda: self.step(inputs), self.stream)
        except NotCaptured as reason:
            say("cuda_graph", f"the step cannot be captured and runs eagerly, which is slower ({reason})")
            return self.eagerly(batches)  # a broken capture has executed nothing
        self.inputs = [t for batch in inputs for t in batch.tensors()]
        self.graph.replay()
        return self.outputs

    def replay(self, tensors: list[Tensor], batches: Sequence[Batch]) -> dict[str, Tensor]:
        if self.graph is None:
            return self.eagerly(batches)
        for own, given in zip(self.inputs, tensors, strict=True):
            own.copy_(given, non_blocking=True)
        self.graph.replay()
        return self.outputs

    @contextmanager
    def on_stream(self):
        """Work on the stream that will be captured, in order with what surrounds it."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            yield
        torch.cuda.current_stream().wait_stream(self.stream)


class NotCaptured(Exception):
    """Work cannot be captured; says why."""


def captured(work: Callable[[], T], stream: torch.cuda.Stream) -> tuple[torch.cuda.CUDAGraph, T]:
    """A CUDA graph of ``work()``, with memory of its own, and what it returned. Nothing is executed yet.

    Raises:
        NotCaptured: after restoring generator, memory and stream.
    """
    graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
    before, generator = torch.cuda.current_stream(), torch.cuda.default_generators[stream.device.index]
    drawn = generator.clone_state()
    torch.cuda.synchronize()
    try:
        # The data workers' pinning threads may call CUDA meanwhile: only this thread's calls must be fit for capture.
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            return graph, work()
    except Exception as error:
        reason = NotCaptured(first_cause(error))
    # torch does not clean up after a capture that CUDA has broken off.
    torch.cuda.set_stream(before)
    generator.graphsafe_set_state(drawn)
    release_pool(pool, stream.device.index)
    raise reason


def first_cause(error: BaseException) -> str:
    """What broke a capture, and where: CUDA's word for its broken end comes last, and hides it."""
    while error.__context__ is not None:
        error = error.__context__
    places = traceback.extract_tb(error.__traceback__)
    at = f" at {Path(places[-1].filename).name}:{places[-1].lineno}" if places else ""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}{at}"


def release_pool(pool: tuple[int, int], device: int) -> None:
    """Ends a broken capture's claim to a memory pool; otherwise memory that several streams have used is never freed.

    Private functions of torch, as 2.11 to 2.13 have them. Without them the memory stays claimed.
    """
    end, release = (getattr(torch._C, name, None) for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"))
    if end is None or release is None:
        return
    try:
        end(device, pool)
    except RuntimeError:  # the capture was ended in order, and the graph gives its pool back
        return
    release(device, pool)
