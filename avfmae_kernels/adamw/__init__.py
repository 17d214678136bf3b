"""AdamW over many tensors at once, from gradients of any dtype and with copies for the next step; and the gradients' norm."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from avfmae_kernels.adamw import reference
from avfmae_kernels.dispatch import call, run_reference


def _run(op: str, implementation: Callable, device: torch.device, *args):
    """On a GPU torch's multi-tensor kernels are the only implementation, whichever is chosen for the model's ops."""
    return call(op, implementation, device, *args) if device.type == "cpu" else run_reference(implementation, device, *args)


def gradient_norm(gradients: Sequence[Tensor]) -> Tensor:
    """√Σ g² over all of the tensors, a float32 scalar on their device; nothing waits for it.

    Args:
        gradients: float32, bfloat16 or float16, contiguous, on one device; at least one.
    """
    if not gradients:
        raise ValueError("gradients: the list is empty")
    return _run("gradient_norm", reference.gradient_norm, gradients[0].device, list(gradients))


def adamw(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    copies: Sequence[Tensor],
    lr: Tensor,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    divisor: Tensor,
    skip: Tensor,
) -> None:
    r"""One step of AdamW (Loshchilov and Hutter, 2019), in place.

    .. math:: g \leftarrow g / divisor, \quad m \leftarrow \beta_1 m + (1-\beta_1) g, \quad v \leftarrow \beta_2 v + (1-\beta_2) g^2, \quad
        w \leftarrow (1 - lr\,\lambda)\,w - lr \frac{m/(1-\beta_1^t)}{\sqrt{v/(1-\beta_2^t)} + \epsilon}, \quad copy \leftarrow w

    What mixed precision costs without it: gradients cast to float32 before, weights cast to bfloat16 after. Floor: bytes; in
    bfloat16 28 a weight, where torch's fused kernel and the two casts move 40. Where a scalar is a tensor it is read on its device.

    Args:
        params, exp_avgs, exp_avg_sqs: float32, contiguous. steps: a float32 scalar each, the steps done; becomes one more.
        grads: float32, bfloat16 or float16; divided by ``divisor``, in effect (clipping).
        copies: empty, or a tensor a parameter in the dtype that the model computes in.
        lr, divisor, skip: float32 scalars; ``skip`` = 1 leaves everything as it is.
    """
    if not params:
        return
    lists = {"grads": grads, "exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs, "steps": steps, "copies": copies}
    for name, tensors in lists.items():
        if len(tensors) != len(params) and (tensors or name != "copies"):
            raise ValueError(f"{name}: got {len(tensors)} tensors for {len(params)} parameters")
    _run("adamw", reference.adamw, params[0].device, *map(list, (params, *lists.values())), lr, *betas, eps, weight_decay, divisor, skip)
