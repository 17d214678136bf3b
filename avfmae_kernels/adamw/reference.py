"""adamw and gradient_norm by torch's multi-tensor kernels, which also run on GPUs; compact moments in plain PyTorch."""

from collections.abc import Sequence
from math import sqrt

import torch
from torch import Tensor


def gradient_norm(gradients: Sequence[Tensor]) -> Tensor:
    by_dtype: dict[torch.dtype, list[Tensor]] = {}  # of several dtypes torch would take one tensor at a time
    for g in gradients:
        by_dtype.setdefault(g.dtype, []).append(g)
    norms = [norm for group in by_dtype.values() for norm in torch._foreach_norm(group, 2, dtype=torch.float32)]
    return torch.linalg.vector_norm(torch.stack(norms))


def adamw(
    params, grads, exp_avgs, exp_avg_sqs, steps, copies, lr, beta1, beta2, eps, weight_decay, divisor, skip, squares=None
) -> None:
    recipe = lr, beta1, beta2, eps, weight_decay
    if squares is not None:
        norms = [gradient_norm([g]) for g in grads]
        squares += torch.stack(norms).square().sum()
        for k, norm in enumerate(norms):
            lists = ([one[k]] for one in (params, grads, exp_avgs, exp_avg_sqs, steps))
            _update(*lists, copies and [copies[k]], *recipe, divisor, torch.maximum(skip, 1 - norm.isfinite().float()))
    else:
        _update(params, grads, exp_avgs, exp_avg_sqs, steps, copies, *recipe, divisor, skip)


def matmul_adamw(a, b, param, exp_avg, exp_avg_sq, step, lr, beta1, beta2, eps, weight_decay, squares) -> Tensor:
    gradient = (a.to(torch.bfloat16).float() @ b.to(torch.bfloat16).float()).contiguous()
    one = torch.ones_like(lr)
    adamw([param], [gradient], [exp_avg], [exp_avg_sq], [step], [], lr, beta1, beta2, eps, weight_decay, one, 0 * one, squares)
    return a.to(torch.bfloat16).float().sum(1)


def _update(params, grads, exp_avgs, exp_avg_sqs, steps, copies, lr, beta1, beta2, eps, weight_decay, divisor, skip) -> None:
    compact = bool(exp_avgs) and exp_avgs[0].dtype == torch.int8
    grads32 = [torch.empty_like(p) for p in params]
    torch._foreach_copy_(grads32, grads)
    torch._foreach_add_(steps, [1 - skip] * len(steps))  # of one tensor, torch 2.11 waits for the GPU to read it
    if compact:
        for lists in zip(params, grads32, exp_avgs, exp_avg_sqs, steps, strict=True):
            _compact(*lists, lr, beta1, beta2, eps, weight_decay, divisor, skip)
    else:
        torch._fused_adamw_(
            params, grads32, exp_avgs, exp_avg_sqs, [], steps, lr=lr, beta1=beta1, beta2=beta2, weight_decay=weight_decay,
            eps=eps, amsgrad=False, maximize=False, grad_scale=divisor, found_inf=skip,
        )  # fmt: skip
    if copies:
        torch._foreach_copy_(copies, params)


def bound(beta1: float, beta2: float) -> float:
    """The most that |m| / √v can be; ValueError where there is no bound."""
    if beta1**2 >= beta2:
        raise ValueError(f"betas: compact moments need betas[0]² < betas[1], got {beta1} and {beta2}; use float32 moments")
    return (1 - beta1) / sqrt((1 - beta2) * (1 - beta1**2 / beta2))


def _compact(w, g, level, v16, t, lr, beta1, beta2, eps, weight_decay, divisor, skip) -> None:
    unit, g, v = bound(beta1, beta2) / 127, g / divisor, v16.float()
    m = level * unit * v.sqrt()
    m = m + (1 - beta1) * (g - m)
    v = beta2 * v + (1 - beta2) * g * g
    new = (1 - lr * weight_decay) * w - lr / (1 - beta1**t) * m / (v.sqrt() / (1 - beta2**t).sqrt() + eps)
    chance = _hash(t, w)
    up = (chance & 0xFFFF) * 2**-16
    ratio = torch.where(v > 0, m / v.sqrt(), 0) / unit
    leave = skip > 0
    w.copy_(torch.where(leave, w, new))
    level.copy_(torch.where(leave, level, (ratio.clamp(-127, 127) + up).floor().to(torch.int8)))
    bits = (v.view(torch.int32).to(torch.int64) + (chance >> 16)) >> 16
    v16.copy_(torch.where(leave, v16, bits.to(torch.int16).view(torch.bfloat16)))


def _hash(step: Tensor, like: Tensor) -> Tensor:
    """32 random bits a place, by Wellons' lowbias32 of place and step."""
    x = torch.arange(like.numel(), device=like.device).view_as(like) + step.to(torch.int64) * 0x9E3779B9 & 0xFFFFFFFF
    x = (x ^ x >> 16) * 0x7FEB352D & 0xFFFFFFFF
    x = (x ^ x >> 15) * 0x846CA68B & 0xFFFFFFFF
    return x ^ x >> 16
