"""Activation checkpointing: blocks keep less memory and recompute the rest in the backward pass.

The ops already keep little (``avfmae_kernels.linear``). Beyond that, a block may keep the results of its matrix products and
long attentions and recompute the rest, or keep its inputs only and recompute everything.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts, noop_context_fn

aten = torch.ops.aten
KEPT = {  # ops whose results are kept: recomputing them costs most
    aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default,
    aten._scaled_dot_product_flash_attention.default, aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_efficient_attention.default, aten._scaled_dot_product_cudnn_attention.default,
}  # fmt: skip


def _keep_products(context, op, *args, **kwargs) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in KEPT else CheckpointPolicy.PREFER_RECOMPUTE


def run(block: Callable, *inputs, recompute: str):
    """``block(*inputs)``; it keeps everything (``"none"``), results of products (``"selective"``), or its inputs (``"full"``)."""
    if recompute == "none" or not torch.is_grad_enabled():
        return block(*inputs)
    contexts = {"selective": partial(create_selective_checkpoint_contexts, _keep_products), "full": noop_context_fn}
    draws = getattr(block, "drop", 0) > 0  # only then must random numbers be restored, which a CUDA graph cannot capture
    return checkpoint(block, *inputs, use_reentrant=False, context_fn=contexts[recompute], preserve_rng_state=draws)
