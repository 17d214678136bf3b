"""Weights that are updated in the backward pass are those that are updated after it."""

import copy
import gc
import weakref

import pytest
import torch
from backends import require
from steps import TINY, random_batch, small
from torch import nn

import avfmae
import avfmae_kernels as K
from avfmae.engines.cpu.optimizer_in_backward import EarlyUpdate
from avfmae.tasks.reconstruction import pretraining_loss
from avfmae.training.config import OptimConfig
from avfmae.training.optim import AdamW
from avfmae.training.step import TrainingStep
from avfmae_kernels import matmul

pytestmark = pytest.mark.isa

PRECISIONS = ["float32", pytest.param("bf16", marks=pytest.mark.skipif(not matmul.BF16, reason="no AVX512-BF16, or AMX"))]


@pytest.mark.parametrize("moments", ["float32", "compact"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_early_is_late(precision, moments):
    """Three steps: losses, norms, weights and moments."""
    results = []
    for early in (False, True):
        model, step = small(precision, early=early, moments=moments, lr=1e-2, weight_decay=0.1)
        before = torch.cat([p.detach().flatten() for p in model.parameters()])
        numbers = [[float(v) for v in step([random_batch(k)]).values()] for k in range(3)]
        assert (step.early is not None) == early and all((p.grad is None) or not early for p in model.parameters())
        moved = torch.cat([p.detach().flatten() for p in model.parameters()]) - before
        second = torch.cat([step.optimiser.state_of(p)["exp_avg_sq"].float().flatten() for p in model.parameters()])
        results.append((torch.tensor(numbers), moved, second, {float(s["step"]) for s in step.optimiser.state.values()} - {0.0}))
    late, early = results
    exact = precision == "float32" and moments == "float32"
    assert torch.allclose(late[0], early[0], rtol=1e-5 if exact else 5e-3) and late[3] == early[3] == {3.0}
    for a, b in ((late[1], early[1]), (late[2], early[2])):
        assert (a - b).norm() <= (1e-4 if exact else 0.1) * a.norm() and a.norm() > 0


@pytest.mark.skipif(not matmul.BF16, reason="no AVX512-BF16, or AMX")
def test_products_are_taken_where_one_layer_has_the_weight_to_itself():
    model, step = small("bf16")
    step([random_batch(0)])
    assert not step.early.taken  # counted first
    step([random_batch(1)])
    names = {id(p): n for n, p in model.named_parameters()}
    taken = {names[i] for i in step.early.taken}
    assert "video_encoder.blocks.0.mlp.fc1.weight" in taken and "audio_decoder.blocks.0.attn.qkv.weight" in taken
    assert not any("decoder.embed" in n for n in taken)  # of the tokens and of each skip feature


class Shared(nn.Module):
    """A layer used twice, and one whose weight is also read past its layer."""

    def __init__(self):
        super().__init__()
        self.twice, self.beside, self.once = (nn.Linear(32, 32) for _ in range(3))

    def forward(self, x, aside):
        for layer in (self.twice, self.twice, self.once, self.beside):
            x = K.linear(x, layer.weight, layer.bias).tanh()
        return x.float().square().sum() + (self.beside.weight.square().sum() if aside else 0)


def optimiser(model, **options):
    parameters = dict(model.named_parameters())
    group = {"params": list(parameters.values()), "names": list(parameters), "weight_decay": 0.0, "lr_scale": 1.0}
    return AdamW([group], lr=1e-3, **options)


@pytest.mark.skipif(not matmul.BF16, reason="no AVX512-BF16, or AMX")
def test_a_weight_that_is_used_twice_gets_both_gradients_and_a_second_part_is_refused():
    torch.manual_seed(0)
    model, rate, x = Shared(), torch.tensor(1e-3), torch.randn(40, 32)
    plain = copy.deepcopy(model)
    early, late = EarlyUpdate(optimiser(model), True), optimiser(plain)
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            a, b = model(x, False), plain(x, False)
        with early.during(rate):
            a.backward()
        b.backward()
        late.update(dict(plain.named_parameters()), rate, torch.ones(()), torch.zeros(()))
        plain.zero_grad()
    assert {id(model.once.weight), id(model.beside.weight)} == early.taken
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(p, q, atol=2e-5)
    with pytest.raises(RuntimeError, match=r"a weight of shape \(32, 32\) got a gradient from outside"), early.during(rate):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(x, True)
        loss.backward()
    with torch.autocast("cpu", torch.bfloat16):
        model(x, True).backward()  # outside nothing is taken
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_gradient_that_is_not_finite_leaves_finite_weights_and_counts(precision):
    """Its loss is finite, so that only the backward pass finds out."""
    torch.manual_seed(0)
    model = avfmae.AVFMAEForPretraining(TINY)
    bad = False

    class Poison(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * torch.inf

    def loss(forward, batch):
        value, parts = pretraining_loss(forward, batch)
        return (Poison.apply(value) if bad else value), parts

    step = TrainingStep(model, loss, OptimConfig(), 100, 10, precision=precision)
    for k in range(4):
        bad = k == 2
        values = step([random_batch(k)])
        assert float(values["skipped"]) == (k >= 2) and float(values["in_a_row"]) == (k == 2)
        assert all(p.isfinite().all() for p in model.parameters())
    assert values["loss"].isfinite() and values["grad_norm"].isfinite()


def test_moments_of_either_kind_can_be_loaded():
    states = {}
    for moments in ("float32", "compact"):
        _, step = small(moments=moments)
        for k in range(3):
            step([random_batch(k)])
        states[moments] = copy.deepcopy(step.optimiser.state_dict())
    kinds = {"float32": torch.float32, "compact": torch.int8}
    for saved, state in states.items():
        for moments in states:
            _, step = small(moments=moments)
            step.optimiser.load_state_dict(state)
            own = step.optimiser.state_dict()["state"]
            assert {s["exp_avg"].dtype for s in own.values()} == {kinds[moments]}
            for number, s in state["state"].items():
                if moments == saved:
                    assert all(torch.equal(own[number][k], s[k]) for k in s)
                elif moments == "float32":
                    assert torch.equal(own[number]["exp_avg_sq"], s["exp_avg_sq"].float())
                else:
                    assert torch.allclose(own[number]["exp_avg_sq"].float(), s["exp_avg_sq"], rtol=2**-8)
            step([random_batch(3)])  # and go on


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_auto_keeps_float32_moments_where_compact_ones_are_coarse(precision):
    require("adamw", "cpp")
    kinds = {}
    for betas in ((0.9, 0.95), (0.9, 0.999), (0.95, 0.9)):
        _, step = small(precision, betas=betas)
        kinds[betas] = step.optimiser.compact
    assert kinds == {(0.9, 0.95): True, (0.9, 0.999): False, (0.95, 0.9): False}
    with K.use("reference"):
        assert not small(precision)[1].optimiser.compact


def test_an_optimiser_that_is_gone_holds_nothing():
    model, step = small("bf16")
    step([random_batch()])
    held = [weakref.ref(s["exp_avg"]) for s in step.optimiser.state.values()]
    assert held and all(r() is not None for r in held)
    del step
    gc.collect()
    assert all(r() is None for r in held)
    pretraining_loss(model, random_batch())[0].backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if "mlp" in n and "encoder.blocks.0" in n)
