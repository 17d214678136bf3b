"""Residual addition and LayerNorm in one pass; and the same where region tokens and local tokens part and join."""

import torch
from torch import Tensor

from avfmae_kernels.add_layer_norm import core, reference
from avfmae_kernels.add_layer_norm.core import backward_into, forward_into, like, norm_grads, parts_of, undefined_stay_none
from avfmae_kernels.arguments import FLOATS, check_floats
from avfmae_kernels.dispatch import choose, register, run_reference

# They write where they are told, so that the rows of one buffer can be read and written by slots.
KERNELS = {"fake": lambda *args: None, "triton": "avfmae_kernels.add_layer_norm.triton"}
register(
    "add_layer_norm",
    "(Tensor x, Tensor? residual, Tensor weight, Tensor bias, float eps, Tensor(a!)? sum, Tensor(b!) normalised, "
    "Tensor(c!) stats) -> ()",
    **KERNELS,
)
register(
    "add_layer_norm_backward",
    "(Tensor? grad_sum, Tensor? grad_normalised, Tensor sum, Tensor stats, Tensor weight, Tensor bias, Tensor(a!) grad_x, "
    "Tensor(b!)? grad_residual, Tensor(c!)? normalised, Tensor(d!) parts) -> ()",
    **KERNELS,
)


def add_layer_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float = 1e-6, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    r"""Sum of a residual stream and a branch, and its LayerNorm (Ba et al., 2016) over the last dimension.

    .. math:: sum = x + residual, \qquad
        normalised = \frac{sum - \overline{sum}}{\sqrt{\mathrm{var}(sum) + eps}} \odot weight + bias.

    Floor: bytes. Forward reads ``x`` and ``residual`` and writes both results; backward reads both gradients and the sum, and
    writes one gradient, which serves ``x`` and ``residual`` alike (a second where their dtypes differ).

    Args:
        x: (..., C) float32, bfloat16 or float16. The last dimension is dense; rows may lie anywhere.
        residual: (..., C), of a dtype of its own, or None: nothing is added.
        weight, bias: (C).
        eps: added to the variance.
        dtype: of ``normalised``; the sum's if None.

    Returns:
        The sum, in the wider dtype of ``x`` and ``residual`` (``x`` itself if nothing is added), and ``normalised``.
    """
    check(x, residual, weight, bias)
    dtype = dtype or total_dtype(x, residual)
    implementation = choose("add_layer_norm", x.device)
    if implementation == "reference":
        return run_reference(reference.add_layer_norm, x.device, x, residual, weight, bias, eps, dtype)
    *total, normalised = _AddLayerNorm.apply(implementation, dtype, eps, x, residual, weight, bias)
    return total[0] if total else x, normalised


def total_dtype(x: Tensor, residual: Tensor | None) -> torch.dtype:
    return x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)


def check(x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor) -> None:
    if x.ndim < 2 or not x.numel():
        raise ValueError(f"x: got {tuple(x.shape)}, expected (..., C) with at least one row")
    if residual is not None and residual.shape != x.shape:
        raise ValueError(f"residual: got {tuple(residual.shape)}, expected {tuple(x.shape)} like x")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor.shape != x.shape[-1:]:
            raise ValueError(f"{name}: got {tuple(tensor.shape)}, expected ({x.shape[-1]},)")
    for name, tensor in (("x", x), ("residual", residual), ("weight", weight), ("bias", bias)):
        # asked of every layer in every step: the words are looked for only where something is wrong
        if tensor is None or (tensor.dtype in FLOATS and tensor.device == x.device and tensor.stride(-1) == 1):
            continue
        check_floats(**{name: tensor})
        if tensor.device != x.device:
            raise ValueError(f"{name}: is on {tensor.device}, expected {x.device} like x")


class _AddLayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, implementation, dtype, eps, x, residual, weight, bias):
        total, normalised, stats = core.forward(implementation, x, residual, weight, bias, eps, dtype)
        ctx.implementation, ctx.residual = implementation, None if residual is None else residual.dtype
        ctx.save_for_backward(total, stats, weight, bias)
        undefined_stay_none(ctx)
        return (normalised,) if residual is None else (total, normalised)

    @staticmethod
    def backward(ctx, *grads):
        grad_total, grad = (None, *grads)[-2:]
        return None, None, None, *core.backward(ctx.implementation, grad_total, grad, *ctx.saved_tensors, ctx.residual)


def split_add_layer_norm(
    x: Tensor, residual: Tensor, first: tuple[Tensor, Tensor], rest: tuple[Tensor, Tensor], eps: float = 1e-6,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """:func:`add_layer_norm` of a regions' buffer, whose region tokens (slot 0) and local tokens part and have a norm each.

    Args:
        x: (B, R, S, C). residual: (B, R, S, C).
        first: weight and bias (C) for slot 0. rest: for the other slots.

    Returns:
        Region tokens (B, R, C) and their norm, local tokens (B, R·(S-1), C) and theirs; each contiguous.
    """
    check(x, residual, *first)
    check(x, residual, *rest)
    if x.ndim != 4 or x.shape[2] < 2:
        raise ValueError(f"x: got {tuple(x.shape)}, expected (B, R, S, C) with S at least 2")
    dtype = dtype or total_dtype(x, residual)
    implementation = choose("add_layer_norm", x.device)
    if implementation == "reference":
        m, t = (y.flatten(1, 2) for y in (x + residual).split((1, x.shape[2] - 1), dim=2))
        return *add_layer_norm(m, None, *first, eps, dtype), *add_layer_norm(t, None, *rest, eps, dtype)
    return _Split.apply(implementation, dtype, eps, x, residual, *first, *rest)


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx, implementation, dtype, eps, x, residual, *norms):
        ctx.implementation, ctx.shape, ctx.residual = implementation, x.shape, residual.dtype
        results, saved = [], []
        for (y, r), weight, bias in zip(zip(slots(x), slots(residual), strict=True), norms[::2], norms[1::2], strict=True):
            total, normalised = like(y, total_dtype(x, residual)), like(y, dtype)
            stats = forward_into(implementation, y, r, weight, bias, eps, total, normalised)
            results += [t.view(len(x), -1, x.shape[-1]) for t in (total, normalised)]
            saved += [total, stats, weight, bias]
        ctx.save_for_backward(*saved)
        undefined_stay_none(ctx)
        return tuple(results)

    @staticmethod
    def backward(ctx, *grads):
        saved = ctx.saved_tensors
        grad_x = saved[0].new_empty(ctx.shape)
        other = None if ctx.residual == grad_x.dtype else grad_x.new_empty(ctx.shape, dtype=ctx.residual)
        d_norms = []
        for i, (s, o) in enumerate(zip(slots(grad_x), slots(other), strict=True)):
            total, stats, weight, bias = saved[4 * i : 4 * i + 4]
            given = [None if g is None else g.reshape(total.shape) for g in grads[2 * i : 2 * i + 2]]
            all_parts, parts = parts_of(ctx.implementation, weight, stats)
            backward_into(ctx.implementation, *given, total, stats, weight, bias, s, o, None, parts)
            d_norms += norm_grads(all_parts, weight)
        return None, None, None, grad_x, grad_x if other is None else other, *d_norms


def join_add_layer_norm(
    m: Tensor, residual: Tensor, t: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-6, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """:func:`add_layer_norm` of region tokens and a branch, and of local tokens as they are, joined in a regions' buffer.

    Args:
        m: (B, R, C) region tokens. residual: (B, R, C), added to them. t: (B, R·(S-1), C) local tokens.
        weight, bias: (C), one norm for all.

    Returns:
        The buffer (B, R, S, C), region tokens in slot 0, and its norm.
    """
    check(m, residual, weight, bias)
    check(t, None, weight, bias)
    if m.ndim != 3 or t.ndim != 3 or t.shape[0] != m.shape[0] or t.shape[1] % m.shape[1] or t.dtype != total_dtype(m, residual):
        raise ValueError(
            f"t: got {t.dtype} {tuple(t.shape)}, expected {total_dtype(m, residual)} (B, R·(S-1), C) beside m {tuple(m.shape)}"
        )
    dtype = dtype or t.dtype
    implementation = choose("add_layer_norm", m.device)
    if implementation == "reference":
        x = torch.cat([(m + residual)[:, :, None], t.unflatten(1, (m.shape[1], -1))], dim=2)
        return add_layer_norm(x, None, weight, bias, eps, dtype)
    return _Join.apply(implementation, dtype, eps, m, residual, t, weight, bias)


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx, implementation, dtype, eps, m, residual, t, weight, bias):
        B, R, C = m.shape
        x = t.new_empty(B, R, 1 + t.shape[1] // R, C)
        normalised = x.new_empty(x.shape, dtype=dtype)
        parts = ((m, residual), (t.unflatten(1, (R, -1)), None))
        stats = [
            forward_into(implementation, y, r, weight, bias, eps, total, n)
            for (y, r), total, n in zip(parts, slots(x), slots(normalised), strict=True)
        ]
        ctx.implementation, ctx.residual = implementation, residual.dtype
        ctx.save_for_backward(x, *stats, weight, bias)
        undefined_stay_none(ctx)
        return x, normalised

    @staticmethod
    def backward(ctx, grad_total, grad):
        x, *stats, weight, bias = ctx.saved_tensors
        grad_inputs = [like(y, x.dtype) for y in slots(x)]
        other = like(grad_inputs[0], ctx.residual) if ctx.residual != x.dtype else None
        all_parts, *parts = parts_of(ctx.implementation, weight, *stats)
        for i, given in enumerate(zip(slots(grad_total), slots(grad), slots(x), strict=True)):
            to_residual = other if i == 0 else None
            backward_into(ctx.implementation, *given, stats[i], weight, bias, grad_inputs[i], to_residual, None, parts[i])
        m, t = grad_inputs
        return None, None, None, m, m if other is None else other, t.flatten(1, 2), *norm_grads(all_parts, weight)


def slots(x: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Region tokens (B, R, C) and local tokens (B, R, S-1, C) of a regions' buffer, in place."""
    return (None, None) if x is None else (x[:, :, 0], x[:, :, 1:])
