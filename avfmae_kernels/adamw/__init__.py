r"""AdamW over many tensors at once, from gradients of any dtype and with copies for the next step; and the gradients' norm.

Moments are float32, or compact: three bytes a weight instead of eight. The second is bfloat16. The first is kept as its ratio to
the root of the second, which the Cauchy-Schwarz inequality bounds,

.. math:: \frac{|m_t|}{\sqrt{v_t}} \le c = \frac{1-\beta_1}{\sqrt{(1-\beta_2)(1-\beta_1^2/\beta_2)}},

in 8 bits: m = level·c/127·√v. This ratio is Adam's direction, so blocks need no scale of their own. Both moments are rounded up
or down by chance (a hash of step and place), so that rounding errors average out over the steps.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from avfmae_kernels.adamw import reference
from avfmae_kernels.adamw.reference import bound
from avfmae_kernels.device import kind
from avfmae_kernels.dispatch import call, register

# These run in their own way, whichever implementation is chosen for the model's ops.
register("gradient_norm", "(Tensor[] gradients) -> Tensor", reference.gradient_norm, strict=False)
register(
    "adamw",
    "(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, Tensor(d!)[] steps, "
    "Tensor(e!)[] copies, Tensor lr, float beta1, float beta2, float eps, float weight_decay, Tensor divisor, Tensor skip, "
    "Tensor(f!)? squares=None) -> ()",
    reference.adamw,
    fake=lambda *args: None,
    cuda_alone=True,
    strict=False,
)
register(
    "matmul_adamw",
    "(Tensor a, Tensor b, Tensor(a!) param, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, Tensor(d!) step, Tensor lr, float beta1, "
    "float beta2, float eps, float weight_decay, Tensor(e!) squares) -> Tensor",
    reference.matmul_adamw,
    fake=lambda a, *args: a.new_empty(len(a), dtype=torch.float32),
    out=True,
    cpu_levels=("avx512_bf16",),
    strict=False,
)


def gradient_norm(gradients: Sequence[Tensor]) -> Tensor:
    """√Σ g² over all of the tensors, a float32 scalar on their device; nothing waits for it.

    Args:
        gradients: float32, bfloat16 or float16, contiguous, on one device; at least one.
    """
    if not gradients:
        raise ValueError("gradients: the list is empty")
    return call("gradient_norm", gradients[0].device, list(gradients))


def adamw(
    params: Sequence[Tensor], grads: Sequence[Tensor], exp_avgs: Sequence[Tensor], exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor], copies: Sequence[Tensor], lr: Tensor, betas: tuple[float, float], eps: float, weight_decay: float,
    divisor: Tensor, skip: Tensor, squares: Tensor | None = None,
) -> None:  # fmt: skip
    r"""One step of AdamW (Loshchilov and Hutter, 2019), in place.

    .. math:: g \leftarrow g / divisor, \quad m \leftarrow \beta_1 m + (1-\beta_1) g, \quad
        v \leftarrow \beta_2 v + (1-\beta_2) g^2, \quad
        w \leftarrow (1 - lr\,\lambda)\,w - lr \frac{m/(1-\beta_1^t)}{\sqrt{v/(1-\beta_2^t)} + \epsilon}, \quad copy \leftarrow w

    What mixed precision costs without it: gradients cast to float32 before, weights cast to bfloat16 after. Floor: bytes; in
    bfloat16 28 a weight, where torch's fused kernel and the two casts move 40. Where a scalar is a tensor it is read on its
    device.

    Args:
        params: float32, contiguous. exp_avgs, exp_avg_sqs: float32, or int8 and bfloat16: compact, on a CPU.
        steps: a float32 scalar each, the steps done; becomes one more.
        grads: float32, bfloat16 or float16; divided by ``divisor`` , in effect (clipping).
        copies: empty, or a tensor a parameter in the dtype that the model computes in.
        lr, divisor, skip: float32 scalars; ``skip`` = 1 leaves everything as it is.
        squares: a float32 scalar that Σ g² of the undivided gradients is added to, in the same pass; weights whose gradient is
            not finite stay as they are then, and perhaps some around them.

    Raises:
        ValueError: a list has another length than ``params``, or compact moments cannot be had with these betas or on this
            device.
    """
    if not params:
        return
    if exp_avgs and exp_avgs[0].dtype == torch.int8:
        bound(*betas)
        if kind(params[0].device) == "cuda":
            raise ValueError("exp_avgs: got compact moments on a GPU, expected torch.float32 (use from_compact_moments)")
    lists = {"grads": grads, "exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs, "steps": steps, "copies": copies}
    for name, tensors in lists.items():
        if len(tensors) != len(params) and (tensors or name != "copies"):
            raise ValueError(f"{name}: got {len(tensors)} tensors for {len(params)} parameters")
    call("adamw", params[0].device, *map(list, (params, *lists.values())), lr, *betas, eps, weight_decay, divisor, skip, squares)


def matmul_adamw(
    grad: Tensor, a: Tensor, param: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, step: Tensor, lr: Tensor,
    betas: tuple[float, float], eps: float, weight_decay: float, squares: Tensor,
) -> Tensor:  # fmt: skip
    """:func:`adamw` of a linear layer's weight whose gradient is gradᵀ·a, which is never written.

    The product's sums go from registers into the update, 14 by 32 at a time. Floor: bytes; otherwise a gradient is written and
    read, and read twice where its norm is asked for.

    Args:
        grad: (rows, O). a: (rows, I), I a multiple of 32; bfloat16 or float32, rounded to bfloat16.
        param: (O, I). The rest as in :func:`adamw`.

    Returns:
        (O), float32: sums of grad's columns, which are the gradient of the layer's bias.
    """
    return call(
        "matmul_adamw", param.device, grad.mT, a, param, exp_avg, exp_avg_sq, step, lr, *betas, eps, weight_decay, squares
    )


def to_compact_moments(exp_avg: Tensor, exp_avg_sq: Tensor, betas: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """float32 moments -> int8 and bfloat16, rounded to the nearest; exact for what :func:`from_compact_moments` gave."""
    second = exp_avg_sq.to(torch.bfloat16)
    root = second.float().sqrt()
    level = torch.where(root > 0, exp_avg / root, 0) * (127 / bound(*betas))
    return level.round().clamp(-127, 127).to(torch.int8), second


def from_compact_moments(exp_avg: Tensor, exp_avg_sq: Tensor, betas: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """int8 and bfloat16 -> float32."""
    second = exp_avg_sq.float()
    return exp_avg.float() * (bound(*betas) / 127) * second.sqrt(), second
