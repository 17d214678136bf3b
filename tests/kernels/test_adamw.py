"""AdamW over many tensors against torch's, in float64; and the norm of all gradients."""

import pytest
import torch
from backends import each_backend, require
from torch._subclasses.fake_tensor import FakeTensorMode

import avfmae_kernels as K

pytestmark = pytest.mark.isa

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
            K.adamw(
                params, grads, moments, squares, steps, copies, scalar(1e-2), (0.9, 0.95), 1e-8, 0.05, scalar(2), scalar(skipped)
            )
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


BETAS = (0.9, 0.95)


def one_step(params, grads, moments, counts, betas=BETAS, weight_decay=0.0, squares=None):
    one = torch.ones(())
    K.adamw(params, grads, *moments, counts, [], one * 1e-2, betas, 1e-8, weight_decay, one, 0 * one, squares)


def run(params, moments, steps=4, seed=0, betas=BETAS, scale=1.0):
    """AdamW's steps from gradients of a seed, on what is given."""
    counts = [torch.zeros(()) for _ in params]
    for step in range(steps):
        one_step(params, tensors("cpu", seed=seed + step, scale=scale), moments, counts, betas, weight_decay=0.05)


def compact_moments(params):
    return [torch.zeros_like(p, dtype=torch.int8) for p in params], [torch.zeros_like(p, dtype=torch.bfloat16) for p in params]


@pytest.mark.parametrize("betas", [BETAS, (0.9, 0.999)], ids=str)
def test_compact_moments_are_the_references(betas):
    require("adamw", "cpp")
    results = []
    for implementation in ("reference", "cpp"):
        params = tensors("cpu", seed=9)
        moments = compact_moments(params)
        with K.use(implementation):
            run(params, moments, betas=betas)
        results.append((params, *moments))
    for w, m, v, w2, m2, v2 in zip(*results[0], *results[1], strict=True):
        assert close(w2, w, 1e-5)
        assert (m.int() - m2.int()).abs().max() <= 1 and (m != m2).float().mean() < 0.01  # where chance decides by a hair
        assert torch.allclose(v.float(), v2.float(), rtol=2**-7)
        assert m.float().abs().max() > 20 or m.numel() == 1


def test_compact_moments_lose_nothing_on_average():
    """Of many equal weights with equal gradients, moments and paths scatter about those in float32."""
    n, g = 100_000, torch.Generator().manual_seed(0)
    exact, compact = [torch.zeros(1)], [torch.zeros(n)]
    wide = [torch.zeros(1)], [torch.zeros(1)]
    narrow = compact_moments(compact)
    counts = [[torch.zeros(())] for _ in range(2)]
    for _ in range(60):
        gradient = torch.randn((), generator=g)
        for params, moments, count in ((exact, wide, counts[0]), (compact, narrow, counts[1])):
            one_step(params, [gradient.expand_as(params[0]).contiguous()], moments, count)
    m, v = K.from_compact_moments(narrow[0][0], narrow[1][0], BETAS)
    assert float(v.mean()) == pytest.approx(float(wide[1][0]), rel=2e-3) and float(v.std()) > 0
    assert float(m.mean()) == pytest.approx(float(wide[0][0]), rel=1e-2)
    assert float(compact[0].mean()) == pytest.approx(float(exact[0]), rel=1e-2) and float(compact[0].std()) < 0.1 * abs(
        float(exact[0])
    )


def test_compact_moments_there_and_back():
    params = tensors("cpu")
    moments = compact_moments(params)
    run(params, moments)
    for m, v in zip(*moments, strict=True):
        wide = K.from_compact_moments(m, v, BETAS)
        again = K.to_compact_moments(*wide, BETAS)
        assert torch.equal(again[0], m) and torch.equal(again[1], v)
    zero = K.to_compact_moments(torch.zeros(3), torch.zeros(3), BETAS)
    assert not zero[0].any() and not zero[1].any()


def test_the_first_moments_ratio_keeps_its_bound():
    """The worst case of the inequality: gradients that shrink backwards in time by β₁/β₂."""
    beta1, beta2 = BETAS
    m = v = 0.0
    for k in reversed(range(400)):
        gradient = (beta1 / beta2) ** k
        m, v = beta1 * m + (1 - beta1) * gradient, beta2 * v + (1 - beta2) * gradient**2
    limit = (1 - beta1) / ((1 - beta2) * (1 - beta1**2 / beta2)) ** 0.5
    assert 0.99 * limit < m / v**0.5 <= limit
    level, _ = K.to_compact_moments(torch.tensor([m]), torch.tensor([v]), BETAS)
    assert level in (126, 127)
    params = tensors("cpu")
    with pytest.raises(ValueError, match=r"betas: .* got 0.95 and 0.9; use float32 moments"):
        run(params, compact_moments(params), betas=(0.95, 0.9))


@pytest.mark.parametrize("compact", [False, True], ids=["float32", "compact"])
def test_what_is_not_finite_stays_as_it_is_where_squares_are_asked_for(compact):
    for implementation in ("reference", "cpp"):
        require("adamw", implementation)
        params, grads = tensors("cpu"), tensors("cpu", seed=1)
        grads[2][-1] = torch.inf
        before = [p.clone() for p in params]
        moments = compact_moments(params) if compact else [[torch.zeros_like(p) for p in params] for _ in range(2)]
        squares = torch.zeros(())
        with K.use(implementation):
            one_step(params, grads, moments, [torch.zeros(()) for _ in params], squares=squares)
        assert all(p.isfinite().all() for p in params) and not squares.isfinite()
        assert params[2][-1] == before[2][-1] and all(not torch.equal(params[k], before[k]) for k in (0, 1, 3))


@pytest.mark.parametrize("compact", [False, True], ids=["float32", "compact"])
@pytest.mark.parametrize("implementation", ["cpp", "reference"])
@pytest.mark.parametrize("size", [(32, 64, 96), (7, 5, 32), (352, 257, 64), (600, 40, 1024)], ids=str)
def test_adamw_of_a_product(size, implementation, compact):
    """As with the product written, weights, moments, norm and bias gradients."""
    require("matmul_adamw", implementation)
    rows, outputs, inputs = size
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(outputs, inputs, generator=g)
    kinds = (torch.int8, torch.bfloat16) if compact else (torch.float32, torch.float32)
    fused, apart = ([weight.clone(), *(torch.zeros_like(weight, dtype=k) for k in kinds), torch.zeros(())] for _ in range(2))
    one, squares, lr = torch.ones(()), torch.zeros(()), torch.tensor(1e-2)
    for _ in range(3):
        grad, a = torch.randn(rows, outputs, generator=g).bfloat16(), torch.randn(rows, inputs, generator=g).bfloat16()
        gradient = grad.float().mT @ a.float()
        squares.zero_()
        with K.use(implementation):
            sums = K.matmul_adamw(grad, a, *fused, lr, BETAS, 1e-8, 0.05, squares)
        w, m, v, count = apart
        K.adamw([w], [gradient], [m], [v], [count], [], lr, BETAS, 1e-8, 0.05, one, 0 * one)
        assert close(squares.sqrt(), gradient.norm(), 1e-5) and torch.allclose(sums, grad.float().sum(0), atol=1e-4 * rows**0.5)
    assert close(fused[0] - weight, apart[0] - weight, 2e-3 if compact else 1e-4) and float(fused[3]) == 3
    if not compact:
        assert close(fused[1], apart[1], 1e-5) and close(fused[2], apart[2], 1e-5)
    kept = fused[0].clone()
    grad[0, 0] = torch.nan
    with K.use(implementation):
        K.matmul_adamw(grad, a, *fused, lr, BETAS, 1e-8, 0.05, squares)
    assert fused[0].isfinite().all() and torch.equal(fused[0][0], kept[0]) and squares.isnan()


def test_adamw_of_a_product_writes_sums_where_it_is_told_or_does_nothing():
    require("matmul_adamw", "cpp")
    grad, a, lr = torch.randn(32, 64), torch.randn(32, 96), torch.tensor(1e-2)
    state = [torch.zeros(64, 96), torch.zeros(64, 96), torch.zeros(64, 96), torch.zeros(())]

    def update(out):
        torch.ops.avfmae.matmul_adamw.out(grad.mT, a, *state, lr, *BETAS, 1e-8, 0.05, torch.zeros(()), out_x=out)

    for wrong in (torch.empty(63), torch.empty(64, dtype=torch.bfloat16), torch.empty(128)[::2]):
        with pytest.raises(RuntimeError, match="out must be"):
            update(wrong)
    assert not any(map(torch.any, state))
    update(sums := torch.empty(64))
    assert float(state[3]) == 1 and torch.allclose(sums, grad.bfloat16().float().sum(0), atol=1e-5)


def test_compact_moments_are_refused_on_a_gpu():
    """There each of a thousand tensors would be dozens of small kernels. Tensors without memory stand in for a GPU's."""
    with FakeTensorMode():
        weights, first, second, scalar = (
            torch.empty(4, device="cuda", dtype=d) for d in (torch.float32, torch.int8, torch.bfloat16, torch.float32)
        )
        with pytest.raises(ValueError, match="exp_avgs: got compact moments on a GPU"):
            K.adamw([weights], [weights], [first], [second], [scalar], [], scalar, BETAS, 1e-8, 0.1, scalar, scalar)
