"""A step that runs eagerly a few times, is captured, and from then on is replayed: on a GPU as a CUDA graph, on a CPU from a
tape.

What Python decides in a step (which layers, which shapes, which ops) it decides in the same way every time. A replay does not ask
again: a GPU gets a thousand kernels in one launch, a CPU a list of ops without modules, autograd and bookkeeping between them.
"""

import gc
import sys
from collections.abc import Callable, Hashable, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from avfmae.data.batch import Batch
from avfmae.engines.cpu.tape import Diverged, Recorder, Tape

EAGER_STEPS = 3  # before it is captured: kernels are tuned, libraries make their workspaces, moments are made

Step = Callable[[Sequence[Batch]], dict[str, Tensor]]


class Captured:
    """A function of batches, the same work for each.

    Args:
        function: gives scalars on the device, which its next call may overwrite.
        settings: what it depends on beside the batches and the numbers in memory; when that changes, it is captured anew.
    """

    def __init__(self, function: Step, settings: Callable[[], Hashable] = lambda: None):
        self.function, self.settings = function, settings
        self.forget()

    def forget(self) -> None:
        self.runs, self.given, self.under = 0, None, self.settings()

    def __call__(self, batches: Sequence[Batch]) -> dict[str, Tensor]:
        if self.settings() != self.under:
            self.forget()
        self.runs += 1
        if self.runs <= EAGER_STEPS:
            return self.eagerly(batches)
        tensors = [t for batch in batches for t in batch.tensors()]
        kinds = [(t.shape, t.stride(), t.dtype) for t in tensors]
        if self.given is None:
            self.given = kinds
            return self.capture(batches)
        return self.replay(tensors, batches) if kinds == self.given else self.eagerly(batches)  # clips of another size

    def eagerly(self, batches: Sequence[Batch]) -> dict[str, Tensor]:
        return self.function(batches)

    def capture(self, batches: Sequence[Batch]) -> dict[str, Tensor]:
        raise NotImplementedError

    def replay(self, tensors: list[Tensor], batches: Sequence[Batch]) -> dict[str, Tensor]:
        raise NotImplementedError


class Graph(Captured):
    """One CUDA graph, on memory of its own. A step that cannot be captured goes on eagerly, and says why."""

    def __init__(self, function: Step, device: torch.device, settings: Callable[[], Hashable] = lambda: None):
        super().__init__(function, settings)
        self.stream = torch.cuda.Stream(device)

    def forget(self) -> None:
        super().forget()
        self.graph = None  # and its memory

    def eagerly(self, batches: Sequence[Batch]) -> dict[str, Tensor]:
        with self.on_stream():
            return self.function(batches)

    def capture(self, batches: Sequence[Batch]) -> dict[str, Tensor]:
        inputs = [batch.map(torch.clone) for batch in batches]
        reason = self.try_to_capture(inputs)
        if reason is not None:  # nothing has run: what is captured is only noted down
            text = f"avfmae: the step is not captured as a CUDA graph and goes on eagerly, which is slower ({reason})"
            print(text, file=sys.stderr, flush=True)
            return self.eagerly(batches)
        self.inputs = [t for batch in inputs for t in batch.tensors()]
        self.graph.replay()
        return self.outputs

    def try_to_capture(self, inputs: Sequence[Batch]) -> str | None:
        """Makes the graph. Returns None, or why there is none; random numbers, memory and the current stream are as before
        then."""
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        surrounding, generator = torch.cuda.current_stream(), torch.cuda.default_generators[self.stream.device.index]
        drawn = generator.clone_state()
        torch.cuda.synchronize()
        try:
            # data workers' pinning threads may call CUDA meanwhile: only this thread's calls must be fit for capture
            with torch.cuda.graph(graph, pool=pool, stream=self.stream, capture_error_mode="thread_local"):
                self.outputs = self.function(inputs)
        except Exception as error:
            reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        else:
            self.graph = graph
            return None
        # a capture that CUDA has broken off is ended by nobody: torch leaves its stream, its pool and its generator as they were
        # inside
        torch.cuda.set_stream(surrounding)
        generator.graphsafe_set_state(drawn)
        give_back(pool, self.stream.device.index)
        return reason

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


def give_back(pool: tuple[int, int], device: int) -> None:
    """Ends a broken capture's claim to a memory pool, without which memory that several streams have used is never freed."""
    try:
        torch._C._cuda_endAllocateToPool(device, pool)
    except RuntimeError:  # the capture was ended in order, and the graph gives its pool back
        return
    torch._C._cuda_releasePool(device, pool)


class Replay(Captured):
    """A tape (:mod:`avfmae.engines.cpu.tape`).

    Where the step has asked for a number, such as whether the loss is finite, a replay asks too. If the answer is another one
    than was recorded, what was written up to there is undone, and the step runs eagerly. It always does where shapes follow from
    numbers.
    """

    tape: Tape | None = None

    def forget(self) -> None:
        super().forget()
        self.tape = None  # and its memory

    def capture(self, batches: Sequence[Batch]) -> dict[str, Tensor]:
        recorder = Recorder([t for batch in batches for t in batch.tensors()])
        with recorder:
            outputs = self.function(batches)
        if recorder.fixed:
            self.tape = Tape.of(recorder, outputs)
        return outputs

    def replay(self, tensors: list[Tensor], batches: Sequence[Batch]) -> dict[str, Tensor]:
        if self.tape is None:
            return self.function(batches)
        before = [t.clone() for t in self.tape.at_stake]
        collects = gc.isenabled()
        gc.disable()  # thousands of short lists would set it off, and none is in a cycle
        try:
            with torch.no_grad(), torch._C._AutoDispatchBelowAutograd():
                return self.tape.play(*tensors)
        except Diverged:
            for t, value in zip(self.tape.at_stake, before, strict=True):
                t.copy_(value)
            return self.function(batches)
        finally:
            if collects:
                gc.enable()
