"""A step that is replayed from its tape (:mod:`avfmae.engines.cpu.tape`), after the tape has proved itself once."""

import gc
from collections.abc import Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from avfmae.data.batch import Batch
from avfmae.engines import say
from avfmae.engines.captured import Captured
from avfmae.engines.cpu.tape import GuardFailed, Recorder, Tape
from avfmae.engines.cpu.torch_private import below_autograd


class Replay(Captured):
    """A step on a CPU that is recorded once and replayed.

    Where the step has read a number, such as whether the loss is finite, the tape has a guard. If a replay gets another number
    than was recorded, the guard fails, what was written up to there is undone, and the step runs eagerly.
    """

    tape: Tape | None = None

    def forget(self) -> None:
        super().forget()
        self.tape, self.proved = None, False  # and the tape's memory

    def capture(self, batches: Sequence[Batch]) -> dict[str, Tensor]:
        recorder = Recorder([t for batch in batches for t in batch.tensors()])
        with recorder:
            outputs = self.step(batches)
        if recorder.static_shapes:
            self.tape = Tape.of(recorder, outputs)
        else:
            say("cpu", "shapes in the step follow from numbers, so it cannot be replayed; steps run eagerly")
        return outputs

    def replay(self, tensors: list[Tensor], batches: Sequence[Batch]) -> dict[str, Tensor]:
        if self.tape is None:
            return self.step(batches)
        if not self.proved:
            return self.prove(tensors, batches)
        before = [t.clone() for t in self.tape.written_before_last_guard]
        try:
            return self.play(tensors)
        except GuardFailed:
            if before:
                torch._foreach_copy_(self.tape.written_before_last_guard, before)
            return self.step(batches)

    def play(self, tensors: list[Tensor]) -> dict[str, Tensor]:
        with torch.no_grad(), below_autograd(), without_garbage_collection():
            return self.tape.play(*tensors)

    def prove(self, tensors: list[Tensor], batches: Sequence[Batch]) -> dict[str, Tensor]:
        """The first replay, and then the step itself from the same state. Where they differ in a bit the tape is dropped."""
        written = self.tape.written
        before, drawn = [t.clone() for t in written], torch.get_rng_state()
        try:
            replayed = fingerprints([*self.play(tensors).values(), *written])
        except GuardFailed:  # the step itself decides: another replay is the first
            replayed = None
        except Exception as error:
            replayed, self.tape = None, None
            say("cpu", f"a replay fails, and steps run eagerly ({type(error).__name__}: {error})")
        torch._foreach_copy_(written, before)
        torch.set_rng_state(drawn)
        outputs = self.step(batches)
        if replayed is not None:
            differ = sum(a != b for a, b in zip(replayed, fingerprints([*outputs.values(), *written]), strict=True))
            self.proved = differ == 0
            if differ:
                self.tape = None
                say("cpu", f"a replay differs from the eager step in {differ} of {len(replayed)} tensors; steps run eagerly")
        return outputs


def fingerprints(tensors: Sequence[Tensor]) -> list[tuple[int, int]]:
    """Two sums of each tensor's bits, plain and weighted by place, so that a tensor need not be kept to be compared."""
    found, integers = [], {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    for tensor in tensors:
        numbers = tensor.detach().reshape(-1).view(integers[tensor.element_size()]).to(torch.int64)
        place = torch.arange(len(numbers)) % 65_521
        found.append((int(numbers.sum()), int((numbers * place).sum())))
    return found


@contextmanager
def without_garbage_collection():
    """A replay makes thousands of short lists, none of them in a cycle, which would set the collector off."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
