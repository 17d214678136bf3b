"""Weights that are updated in the backward pass are those that are updated after it."""

import copy
import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from steps import TINY, random_batch, small, written
from torch import nn

import avfmae
import avfmae_kernels as K
from avfmae import engines
from avfmae.engines.cpu import compact_moments
from avfmae.engines.cpu.optimizer_in_backward import BackwardStep, OptimizerInBackward
from avfmae.tasks.reconstruction import pretraining_loss
from avfmae.training.config import OptimConfig
from avfmae.training.optim import AdamW
from avfmae.training.precision import ComputeParams
from avfmae.training.step import TrainingStep
from avfmae_kernels import matmul

pytestmark = [pytest.mark.isa, pytest.mark.slow]

PRECISIONS = ["float32", pytest.param("bf16", marks=pytest.mark.skipif(not matmul.BF16, reason="no AVX512-BF16, or AMX"))]


def in_backward(precision="float32", compact=False, **optim):
    """A model, its step, and the step with updates in the backward pass."""
    model, step = small(precision, **optim)
    if compact:
        compact_moments.use(step.optimizer)
    return model, step, BackwardStep(step)


@pytest.mark.parametrize("compact", [False, True], ids=["float32 moments", "compact moments"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_updates_in_the_backward_pass_are_those_after_it(precision, compact):
    """Three steps: losses, norms, weights and moments."""
    results = []
    for early in (False, True):
        model, step, backward = in_backward(precision, compact, lr=1e-2, weight_decay=0.1)
        before = torch.cat([p.detach().flatten() for p in model.parameters()])
        execute = backward if early else step
        numbers = [[float(v) for v in execute([random_batch(k)]).values()] for k in range(3)]
        assert all(p.grad is None for p in model.parameters())
        moved = torch.cat([p.detach().flatten() for p in model.parameters()]) - before
        second = torch.cat([step.optimizer.state_of(p)["exp_avg_sq"].float().flatten() for p in model.parameters()])
        results.append((torch.tensor(numbers), moved, second, {float(s["step"]) for s in step.optimizer.state.values()} - {0.0}))
    late, early = results
    exact = precision == "float32" and not compact
    assert torch.allclose(late[0], early[0], rtol=1e-5 if exact else 5e-3) and late[3] == early[3] == {3.0}
    for a, b in ((late[1], early[1]), (late[2], early[2])):
        assert (a - b).norm() <= (1e-4 if exact else 0.1) * a.norm() and a.norm() > 0


@pytest.mark.skipif(not matmul.BF16, reason="no AVX512-BF16, or AMX")
def test_weights_that_one_layer_uses_are_updated_before_autograd_has_their_gradients():
    model, _, step = in_backward("bf16")
    step([random_batch(0)])
    assert not step.updates.updated  # uses are counted first
    step([random_batch(1)])
    names = {id(p): n for n, p in model.named_parameters()}
    updated = {names[i] for i in step.updates.updated}
    assert "video_encoder.blocks.0.mlp.fc1.weight" in updated and "audio_decoder.blocks.0.attn.qkv.weight" in updated
    assert not any("decoder.embed" in n for n in updated)  # of the tokens and of each skip feature


class Shared(nn.Module):
    """A layer used twice, and one whose weight is also read past its layer."""

    def __init__(self):
        super().__init__()
        self.twice, self.beside, self.once = (nn.Linear(32, 32) for _ in range(3))

    def forward(self, x, aside):
        for layer in (self.twice, self.twice, self.once, self.beside):
            x = K.linear(x, layer.weight, layer.bias).tanh()
        return x.float().square().sum() + (self.beside.weight.square().sum() if aside else 0)


def with_optimizer(model):
    """What the updates ask of a training step."""
    parameters = dict(model.named_parameters())
    group = {"params": list(parameters.values()), "names": list(parameters), "weight_decay": 0.0, "lr_scale": 1.0}
    return SimpleNamespace(optimizer=AdamW([group], lr=1e-3), params=ComputeParams(model, torch.float32))


@pytest.mark.skipif(not matmul.BF16, reason="no AVX512-BF16, or AMX")
def test_a_weight_that_is_used_twice_gets_both_gradients_and_a_second_part_is_refused():
    torch.manual_seed(0)
    model, rate, x = Shared(), torch.tensor(1e-3), torch.randn(40, 32)
    plain = copy.deepcopy(model)
    early, late = OptimizerInBackward(with_optimizer(model), True), with_optimizer(plain)
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            a, b = model(x, False), plain(x, False)
        with early.during(rate):
            a.backward()
        b.backward()
        late.optimizer.update(late.params.of, rate, torch.ones(()), torch.zeros(()))
        plain.zero_grad()
    assert {id(model.once.weight), id(model.beside.weight)} == early.updated
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(p, q, atol=2e-5)
    with pytest.raises(RuntimeError, match=r"a weight of shape \(32, 32\) got a gradient from outside"), early.during(rate):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(x, True)
        loss.backward()
    with torch.autocast("cpu", torch.bfloat16):
        model(x, True).backward()  # outside nothing is intercepted
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_gradient_that_is_not_finite_ends_the_run_and_a_loss_is_left_out(precision):
    """The gradient's loss is finite, so that only the backward pass finds out; eagerly, and from the tape."""
    torch.manual_seed(0)
    model = avfmae.AVFMAEForPretraining(TINY)
    poison = torch.ones(())

    class Poison(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * poison

    def loss(forward, batch):
        value, parts = pretraining_loss(forward, batch)
        return Poison.apply(value), parts

    for steps in (1, 7):
        poison.fill_(1)
        step = TrainingStep(model, loss, OptimConfig(), 100, 10, precision=precision)
        execute = engines.build("cpu", step)
        for k in range(steps):
            execute([random_batch(k)])
        bad = random_batch(50)
        bad.audio[0] = torch.nan
        before = written(step)
        assert float(execute([bad])["skipped"]) == 1
        assert all(map(torch.equal, before, written(step)))
        poison.fill_(torch.inf)
        with pytest.raises(RuntimeError, match=r"a gradient was not finite.*last checkpoint is good.*--engine eager"):
            execute([random_batch(51)])
        assert all(p.isfinite().all() for p in model.parameters())


def test_checkpoints_of_every_kind_of_moments_load_and_hold_float32():
    """Compact ones come back as they were; files of version 0.1.0 hold compact moments as they are."""
    files = {}
    for compact in (False, True):
        _, step, execute = in_backward(compact=compact)
        for k in range(3):
            execute([random_batch(k)])
        files["compact" if compact else "float32"] = copy.deepcopy(step.optimizer.state_dict())
        if compact:
            raw = [step.optimizer.state[p] for group in step.optimizer.param_groups for p in group["params"]]
            files["0.1.0"] = {**files["compact"], "state": {k: copy.deepcopy(s) for k, s in enumerate(raw) if s}}
    for name, saved in files.items():
        dtypes = {s["exp_avg"].dtype for s in saved["state"].values()}
        assert dtypes == {torch.int8 if name == "0.1.0" else torch.float32}
        for compact in (False, True):
            _, step, execute = in_backward(compact=compact)
            step.optimizer.load_state_dict(copy.deepcopy(saved))
            own = step.optimizer.state_dict()["state"]
            kept = {s["exp_avg"].dtype for s in step.optimizer.state.values()}
            assert kept == {torch.int8 if compact else torch.float32}
            for number, s in (files["compact"] if name == "0.1.0" else saved)["state"].items():
                if compact and name == "float32":
                    assert torch.allclose(own[number]["exp_avg_sq"], s["exp_avg_sq"], rtol=2**-8)
                else:
                    assert all(torch.equal(own[number][k], s[k]) for k in s)
            execute([random_batch(3)])  # and go on


def test_moments_stay_float32_where_eight_bits_are_coarse():
    found = {betas: compact_moments.why_not(betas) is None for betas in ((0.9, 0.95), (0.9, 0.999), (0.95, 0.9))}
    assert found == {(0.9, 0.95): True, (0.9, 0.999): False, (0.95, 0.9): False}
    with K.use("reference"):
        assert compact_moments.why_not((0.9, 0.95))


def test_an_optimizer_that_is_gone_holds_nothing():
    model, step, execute = in_backward("bf16")
    execute([random_batch()])
    held = [weakref.ref(s["exp_avg"]) for s in step.optimizer.state.values()]
    assert held and all(r() is not None for r in held)
    del step, execute
    gc.collect()
    assert all(r() is None for r in held)
    pretraining_loss(model, random_batch())[0].backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if "mlp" in n and "encoder.blocks.0" in n)


def test_hooks_go_when_other_weights_are_frozen():
    model, _, execute = in_backward()
    execute([random_batch()])
    first = execute.updates
    model.video_encoder.blocks[0].mlp.requires_grad_(False)
    execute([random_batch()])
    weight = model.video_decoder.head.weight
    assert execute.updates is not first and len(weight._post_accumulate_grad_hooks) == 1
