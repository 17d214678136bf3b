"""AdamW over many tensors against torch's, in float64; and the norm of all gradients."""

import pytest
import torch
from backends import each_backend, require

import avfmae_kernels as K

SIZES = [(3, 5), (1,), (4097,), (129, 65)]  # below, at and above a chunk


def close(a, b, tolerance):
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm()) <= tolerance


def tensors(device, dtype=torch.float32, seed=0, scale=1.0):
    g = torch.Generator().manual_seed(seed)
    return [(scale * torch.randn(s, generator=g)).to(dtype).to(device) for s in SIZES]


@each_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=lambda t: str(t).removeprefix("torch."))
@pytest.mark.parametrize("copied", [False, True], ids=["bare", "copied"])
def test_adamw_is_torchs(implementation, device, dtype, copied):
    if device == "cpu":
        require("adamw", implementation)
    scalar = lambda x: torch.tensor(float(x), device=device)  # noqa: E731
    params = tensors(device)
    moments, squares = ([torch.zeros_like(p) for p in params] for _ in range(2))
    steps = [scalar(0) for _ in params]
    copies = [torch.full_like(p, torch.nan, dtype=torch.bfloat16) for p in params] if copied else []
    oracle = [p.double().clone().requires_grad_() for p in params]
    optimiser = torch.optim.AdamW(oracle, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.05, foreach=False)
    with K.use(implementation):
        for step, skipped in enumerate((0, 0, 1, 0)):
            grads = tensors(device, dtype, seed=step + 1)
            kept = [g.clone() for g in grads]
            before = [p.clone() for p in params]
            K.adamw(params, grads, moments, squares, steps, copies, scalar(1e-2), (0.9, 0.95), 1e-8, 0.05, scalar(2), scalar(skipped))
            assert all(torch.equal(g, k) for g, k in zip(grads, kept, strict=True))
            if skipped:
                assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))
                continue
            for p, g in zip(oracle, grads, strict=True):
                p.grad = g.double() / 2
            optimiser.step()
    assert all(float(s) == 3 for s in steps)
    for p, o, b in zip(params, oracle, tensors(device), strict=True):
        assert close(p, o, 1e-6) and not close(p, b, 1e-3)
    for c, p in zip(copies, params, strict=False):
        assert torch.equal(c, p.to(torch.bfloat16))


@each_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_gradient_norm(implementation, device, dtype):
    if device == "cpu":
        require("gradient_norm", implementation)
    grads = tensors(device, dtype, scale=1e-3)
    exact = torch.cat([g.double().flatten() for g in grads]).norm()
    with K.use(implementation):
        assert close(K.gradient_norm(grads), exact, 1e-6)
        grads[1][...] = torch.nan
        assert K.gradient_norm(grads).isnan()
        grads[1][...] = -torch.inf
        assert K.gradient_norm(grads).isinf()


def test_errors_name_the_list():
    p = tensors("cpu")
    one = torch.tensor(1.0)
    with pytest.raises(ValueError, match="grads: got 3 tensors for 4 parameters"):
        K.adamw(p, p[:3], p, p, [one] * 4, [], one, (0.9, 0.95), 1e-8, 0.0, one, one)
    with pytest.raises(ValueError, match="gradients: the list is empty"):
        K.gradient_norm([])
