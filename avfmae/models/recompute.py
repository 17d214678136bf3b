"""Activation checkpointing: time for memory, by block, or by op inside a block.

The ops already keep little (``avfmae_kernels.linear``). Beyond that, a block may keep what its matrix products and long
attentions gave, and do the cheap rest again on the way back; or keep nothing but its input.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts, noop_context_fn

aten = torch.ops.aten
DEAR = {  # ops whose answers are kept: their work grows with the width, that of all others does not
    aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default,
    aten._scaled_dot_product_flash_attention.default, aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_efficient_attention.default, aten._scaled_dot_product_cudnn_attention.default,
}  # fmt: skip


def _keep_the_dear(context, op, *args, **kwargs) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in DEAR else CheckpointPolicy.PREFER_RECOMPUTE


def run(block: Callable, *inputs, recompute: str):
    """``block(*inputs)``, keeping for the way back everything (``"none"``), the dear (``"selective"``) or inputs only
    (``"full"``)."""
    if recompute == "none" or not torch.is_grad_enabled():
        return block(*inputs)
    contexts = {"selective": partial(create_selective_checkpoint_contexts, _keep_the_dear), "full": noop_context_fn}
    draws = (
        getattr(block, "drop", 0) > 0
    )  # stochastic depth must fall the same way again; otherwise a CUDA graph can capture this
    return checkpoint(block, *inputs, use_reentrant=False, context_fn=contexts[recompute], preserve_rng_state=draws)
