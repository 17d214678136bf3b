"""adamw and gradient_norm by torch's own multi-tensor kernels: oracle, fallback, and what runs on a GPU."""

from collections.abc import Sequence

import torch
from torch import Tensor


def gradient_norm(gradients: Sequence[Tensor]) -> Tensor:
    norms = torch._foreach_norm(gradients, 2, dtype=torch.float32)
    return torch.linalg.vector_norm(torch.stack(norms))


def adamw(params, grads, exp_avgs, exp_avg_sqs, steps, copies, lr, beta1, beta2, eps, weight_decay, divisor, skip) -> None:
    grads32 = [torch.empty_like(p) for p in params]
    torch._foreach_copy_(grads32, grads)
    torch._foreach_add_(steps, 1 - skip)
    torch._fused_adamw_(
        params, grads32, exp_avgs, exp_avg_sqs, [], steps, lr=lr, beta1=beta1, beta2=beta2, weight_decay=weight_decay, eps=eps,
        amsgrad=False, maximize=False, grad_scale=divisor, found_inf=skip,
    )  # fmt: skip
    if copies:
        torch._foreach_copy_(copies, params)
