"""What engines that record a step share: it runs eagerly a few times, is recorded once, and is replayed from then on.

What Python decides in a step (which layers, which shapes, which ops) it decides in the same way every time. A replay does not
decide again.
"""

from collections.abc import Callable, Hashable, Sequence

from torch import Tensor

from avfmae.data.batch import Batch
from avfmae.engines import Step

EAGER_STEPS = 3  # of one process: kernels are tuned, libraries allocate their workspaces, moments are made


class Captured:
    """A step that is recorded and replayed. Subclasses say how.

    Args:
        step: gives scalars on the device, which its next call may overwrite.
        signature: what the step depends on beside its batches and the numbers in memory; when it changes, the step is recorded
            anew.
        eager_steps: before the recording.
    """

    def __init__(self, step: Step, signature: Callable[[], Hashable] = lambda: None, eager_steps: int = EAGER_STEPS):
        self.step, self.signature, self.eager_steps = step, signature, eager_steps
        self.forget()

    def forget(self) -> None:
        """Drops the recording."""
        self.runs, self.inputs_like, self.recorded_under = 0, None, self.signature()

    def __call__(self, batches: Sequence[Batch]) -> dict[str, Tensor]:
        if self.signature() != self.recorded_under:
            self.forget()
        self.runs += 1
        if self.runs <= self.eager_steps:
            return self.eagerly(batches)
        tensors = [t for batch in batches for t in batch.tensors()]
        like = [(t.shape, t.stride(), t.dtype) for t in tensors]
        if self.inputs_like is None:
            self.inputs_like = like
            return self.capture(batches)
        return self.replay(tensors, batches) if like == self.inputs_like else self.eagerly(batches)

    def eagerly(self, batches: Sequence[Batch]) -> dict[str, Tensor]:
        return self.step(batches)

    def capture(self, batches: Sequence[Batch]) -> dict[str, Tensor]:
        """Does the step, and records it."""
        raise NotImplementedError

    def replay(self, tensors: list[Tensor], batches: Sequence[Batch]) -> dict[str, Tensor]:
        """Does the step from the recording, given all tensors of the batches."""
        raise NotImplementedError


def draws_while_recomputing(model) -> bool:
    """Whether checkpointed blocks must draw their stochastic depth a second time, for which they reset the generator."""
    return model.cfg.recompute != "none" and model.cfg.drop_path > 0
