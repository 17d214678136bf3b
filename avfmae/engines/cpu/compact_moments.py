"""AdamW's moments in three bytes a weight instead of eight (:func:`avfmae_kernels.adamw`). Checkpoints hold float32 moments."""

import torch

import avfmae_kernels as K
from avfmae_kernels.adamw import bound

DTYPES = (torch.int8, torch.bfloat16)


def why_not(betas: tuple[float, float]) -> str | None:
    """The reason against compact moments, or None: 8 bits of a first moment must be hundredths of the second's root."""
    beta1, beta2 = betas
    if K.chosen() == "reference":
        return "the reference kernels were asked for"
    if beta1**2 >= beta2 or bound(*betas) >= 2:
        return f"8 bits are too coarse for betas {beta1:g} and {beta2:g}"
    return None


def use(optimizer) -> None:
    """Makes the optimizer keep compact moments from now on; its state dict gives and takes float32 ones."""
    optimizer.moment_dtypes = DTYPES
    optimizer.register_load_state_dict_post_hook(_compact)
    _compact(optimizer)


def _compact(optimizer) -> None:
    for group in optimizer.param_groups:
        for state in (optimizer.state[p] for p in group["params"] if optimizer.state.get(p)):
            if state["exp_avg"].dtype != torch.int8:
                moments = K.to_compact_moments(state["exp_avg"], state["exp_avg_sq"], group["betas"])
                state |= dict(zip(("exp_avg", "exp_avg_sq"), moments, strict=True))
