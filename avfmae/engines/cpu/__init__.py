"""The fastest step on a CPU: weights updated in the backward pass, compact moments, all of it replayed from a tape of its ops.

Updates in the backward pass and compact moments change the mathematics a little, and each serves only where it can (one process,
one micro-batch, no clipping; a second moment that changes in fine steps). The tape changes nothing, and proves it before it is
used: the first replay is compared with an eager step from the same state, bit by bit.
"""

from avfmae.engines import Step, say
from avfmae.engines.captured import draws_while_recomputing


def engine(step) -> Step:
    """A :class:`avfmae.training.step.TrainingStep` for a CPU. Where a part of the engine cannot serve, a line says why."""
    if step.device.type != "cpu":
        say("cpu", f"the model is on {step.device}, expected a CPU; steps run eagerly")
        return step
    from avfmae.engines.cpu import torch_private

    if torch_private.MISSING:
        say("cpu", f"{torch_private.MISSING}; steps run eagerly")
        return step
    from avfmae.engines.cpu import compact_moments, optimizer_in_backward
    from avfmae.engines.cpu.replay import Replay

    if reason := compact_moments.why_not(step.optim.betas):
        say("cpu", f"moments stay float32 ({reason})")
    else:
        compact_moments.use(step.optimizer)
    run, in_backward = step, False
    if reason := optimizer_in_backward.why_not(step):
        say("cpu", f"weights are updated after the backward pass ({reason})")
    else:
        run, in_backward = optimizer_in_backward.BackwardStep(step), True
    if step.world > 1 or draws_while_recomputing(step.model) or step.forward is not step.model:
        say("cpu", "nothing is replayed (with several processes, torch.compile, or stochastic depth in recomputed blocks)")
    else:
        run = Replay(run, step.signature)
    return optimizer_in_backward.EndsAtBadGradients(run) if in_backward else run
