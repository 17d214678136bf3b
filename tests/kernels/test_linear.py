"""Linear layers of something cheap: they give what the plain composition gives, and keep less."""

import pytest
import torch
import torch.nn.functional as F
from backends import each_backend, require
from correctness import TOLERANCE, check, kept_numbers

import avfmae_kernels as K
from avfmae_kernels import matmul
from avfmae_kernels.cross_attention.reference import cross_attention
from avfmae_kernels.region_attention.reference import region_attention

pytestmark = pytest.mark.isa

C, H, O = 32, 2, 24


def norm_linear(x, residual, gain, shift, weight, bias):
    total = x + residual
    return total, F.linear(F.layer_norm(total, (C,), gain, shift, 1e-6), weight, bias)


CASES = {  # ours, plain, shapes of the inputs
    "linear": (K.linear, F.linear, [(3, 5, C), (O, C), (O,)]),
    "linear, no bias": (K.linear, F.linear, [(3, 5, C), (O, C)]),
    "linear, one row": (K.linear, F.linear, [(C,), (O, C), (O,)]),
    "linear, one output": (K.linear, F.linear, [(7, C), (1, C), (1,)]),
    "linear, rows far apart": (
        lambda x, w, b: K.linear(x[:, ::2], w, b),
        lambda x, w, b: F.linear(x[:, ::2], w, b),
        [(3, 6, C), (O, C), (O,)],
    ),
    "norm_linear": (lambda x, r, g, s, w, b: K.norm_linear(x, r, g, s, 1e-6, w, b), norm_linear,
                    [(3, 5, C), (3, 5, C), (C,), (C,), (O, C), (O,)]),
    "norm_linear, nothing added": (
        lambda x, g, s, w, b: K.norm_linear(x, None, g, s, 1e-6, w, b)[1],
        lambda x, g, s, w, b: norm_linear(x, 0, g, s, w, b)[1],
        [(3, 5, C), (C,), (C,), (O, C), (O,)],
    ),
    "mlp": (
        lambda x, v, a, w, b: K.mlp(x, v / 6, a, w / 6, b),
        lambda x, v, a, w, b: F.linear(F.gelu(F.linear(x, v / 6, a)), w / 6, b),
        [(3, 5, C), (C, C), (C,), (O, C), (O,)],
    ),
    "region_attention_linear": (
        lambda x, w, b: K.region_attention_linear(x, H, w, b),
        lambda x, w, b: F.linear(region_attention(x, H), w, b),
        [(3, 5, 3 * C), (O, C), (O,)],
    ),
    "cross_attention_linear": (
        lambda q, kv, w, b: K.cross_attention_linear(q, kv, H, w, b),
        lambda q, kv, w, b: F.linear(cross_attention(q, kv, H), w, b),
        [(3, 5, C), (3, 4, 2 * C), (O, C), (O,)],
    ),
}  # fmt: skip

CHEAP = {name: case for name, case in CASES.items() if not name.startswith("linear")}


@each_backend
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("ours", "plain", "shapes"), CASES.values(), ids=CASES)
def test_against_float64(ours, plain, shapes, dtype, implementation, device):
    if implementation == "cuda":
        pytest.skip("norms and cross attention have no CUDA kernel of their own")
    require("add_layer_norm", implementation, device)
    g = torch.Generator().manual_seed(0)
    check(implementation, ours, plain, [torch.randn(s, generator=g, dtype=torch.float64) for s in shapes], dtype, device)


@pytest.mark.parametrize(("ours", "plain", "shapes"), CASES.values(), ids=CASES)
def test_autocast_gives_what_it_gives_the_plain_composition(ours, plain, shapes):
    g = torch.Generator().manual_seed(0)
    inputs = [torch.randn(s, generator=g) for s in shapes]
    results = []
    for implementation in ("reference", "auto"):
        leaves = [x.clone().requires_grad_() for x in inputs]
        with K.use(implementation), torch.autocast("cpu", torch.bfloat16):
            out = ours(*leaves)
        out = out[1] if isinstance(out, tuple) else out
        assert out.dtype == torch.bfloat16
        results.append([out, *torch.autograd.grad(out.float().sin().sum(), leaves)])
    for a, b in zip(*results, strict=True):
        size = max(b.detach().float().norm(), 2 * b.numel() ** 0.5)  # sums over rows of numbers around 1 may cancel
        assert a.dtype == b.dtype and (a.float() - b.float()).norm() <= 2e-2 * size


@pytest.mark.parametrize(("ours", "plain", "shapes"), CHEAP.values(), ids=CHEAP)
def test_less_is_kept(ours, plain, shapes):
    require("add_layer_norm", "cpp")
    inputs = [torch.randn(s, requires_grad=True) for s in shapes]
    with K.use("reference"):
        plain_keeps = kept_numbers(lambda: ours(*inputs))
    answer = 3 * 5 * C  # what the linear layer would keep
    assert kept_numbers(lambda: ours(*inputs)) <= plain_keeps - answer


@pytest.mark.skipif(not matmul.ONEDNN, reason="no AVX-512, or no oneDNN")
def test_float32_products_on_a_cpu_are_onednns():
    x, weight = torch.randn(3, 5, C, requires_grad=True), torch.randn(O, C, requires_grad=True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        K.linear(x, weight).sum().backward()
    counts = {e.key: e.count for e in profile.key_averages()}
    assert counts["mkldnn::_linear_pointwise"] == 3 and "aten::mm" not in counts and "aten::addmm" not in counts
    with K.use("reference"):
        assert K.linear(x, weight).grad_fn.name() != "_LinearBackward"
    assert K.linear(x[:0], weight).shape == (0, 5, O)  # nothing is computed, and nothing breaks
