"""Attention and its gradients in plain PyTorch: the maths that region_attention and cross_attention share."""

from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ/√D) v: q (…, Nq, D), k and v (…, Nk, D) -> (…, Nq, D)."""
    return _probabilities(q, k) @ v


def attention_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients to q, k and v, and the recomputed output.

    With p = softmax(q kᵀ/√D) and g the gradient: dv = pᵀ g; dp = g vᵀ; ds = p ⊙ (dp − Σ p ⊙ dp)/√D; dq = ds k; dk = dsᵀ q.
    Written out rather than left to autograd, which a compiled backward pass cannot call.
    """
    p, dp = _probabilities(q, k), grad @ v.mT
    ds = p * (dp - (p * dp).sum(-1, keepdim=True)) * q.shape[-1] ** -0.5
    return ds @ k, ds.mT @ q, p.mT @ grad, p @ v


def _probabilities(q: Tensor, k: Tensor) -> Tensor:
    return (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1)
