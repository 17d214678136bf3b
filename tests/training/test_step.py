"""The step trains as plain PyTorch does, reads nothing back from the device, and leaves out what is not finite."""

import copy

import numpy as np
import pytest
import torch
from backends import GPU
from steps import TINY, random_batch, small, written
from torch.utils._python_dispatch import TorchDispatchMode

import avfmae
import avfmae_kernels as K
from avfmae import engines
from avfmae.data.config import DataConfig
from avfmae.engines.captured import EAGER_STEPS
from avfmae.tasks.reconstruction import pretraining_loss
from avfmae.training.config import OptimConfig
from avfmae.training.optim import learning_rate
from avfmae.training.precision import compute_dtype, linear_parameters
from avfmae.training.step import TrainingStep
from avfmae_kernels import processor

pytestmark = [pytest.mark.isa, pytest.mark.slow]
DEVICES = ["cpu", pytest.param("cuda", marks=GPU)]
SHALLOW = TINY.replace(depth=2, skip_blocks=(0, 1), fusion_depth=1)  # of every kind of block some
CURVE = 80  # steps


@pytest.fixture(params=["float32", "bf16"])
def precision(request):
    """Layers read their weights as they are, or as copies that the optimizer writes."""
    return request.param


@pytest.fixture(scope="module")
def batches(tmp_path_factory):
    """Batches of the demo's clips: 24 clips read twice, with other crops, sounds and masks, in another order every epoch."""
    pytest.importorskip("av")
    from avfmae.data.dataset import PretrainDataset
    from avfmae.data.manifest import read_manifest
    from avfmae.data.preprocess import preprocess
    from avfmae.data.sampler import BatchSampler
    from avfmae.datasets.drawn import EMOTIONS, DemoSet, make_demo_set

    manifest = make_demo_set(
        tmp_path_factory.mktemp("drawn"), DemoSet("faces", first=0, people=4, labels={e: e for e in EMOTIONS})
    )
    dataset = PretrainDataset(read_manifest(manifest), TINY, DataConfig(workers=0), "pretrain")
    read = {(epoch, i): dataset[(epoch, i)] for epoch in range(2) for i in range(len(dataset))}
    found = []
    for items in BatchSampler.fit(len(dataset), 6, None).micro_batches(0, CURVE):
        epoch = items[0][0]
        batch = dataset.collate([read[(epoch % 2, i)] for _, i in items])
        batch.masks = avfmae.DualMask.for_clips(TINY, batch.clips, 0, epoch=epoch)
        found.append(preprocess(batch, TINY, fused=True))
    return found


def train(batches, seed, implementation, precision, steps, lr=4e-3, device="cpu", clip_grad=1.0, engine="auto"):
    torch.manual_seed(seed)
    optim = OptimConfig(lr=lr * 256 / 6, epochs=75, warmup_epochs=5, total_batch=6, clip_grad=clip_grad)
    with K.use(implementation):
        model = avfmae.AVFMAEForPretraining(SHALLOW).to(device)
        step = engines.build(engine, TrainingStep(model, pretraining_loss, optim, 300, 4, precision=precision))
        return np.array([float(step([b.to(torch.device(device))])["loss"]) for b in batches[:steps]]), model


def engine_names(device):
    """The default engine, and the fastest one on a CPU where it is there."""
    return ["auto"] + [name for name in engines.names() if name == device]


@pytest.mark.xdist_group("loss curves")
@pytest.mark.slow
@pytest.mark.parametrize("clip_grad", [1.0, None])
@pytest.mark.parametrize("device", DEVICES)
def test_the_first_steps_are_those_of_plain_pytorch(batches, device, clip_grad):
    """Float32, one seed: twenty steps agree to 1e-4 in the mean. In one step plain PyTorch's own losses are 2e-4 apart, with one
    thread and with two. Without clipping an engine may update weights in the backward pass."""
    lr = 4e-3 if clip_grad else 1e-3
    plain, _ = train(batches, 0, "reference", "float32", 20, lr, device, clip_grad, "eager")
    for engine in engine_names(device):
        fast, _ = train(batches, 0, "auto", "float32", 20, lr, device, clip_grad, engine)
        assert np.abs(fast / plain - 1).mean() < 1e-4, engine
    assert plain[-5:].mean() < 0.9 * plain[:5].mean()  # it trains, so that agreement says something


@pytest.mark.xdist_group("loss curves")
@pytest.mark.exhaustive
@pytest.mark.parametrize("clip_grad", [1.0, None])
@pytest.mark.parametrize("device", DEVICES)
def test_the_loss_curve_lies_within_the_spread_of_seeds(batches, device, clip_grad):
    """Some steps as the device does them best against plain float32: the distance of two seeds' curves is the measure."""
    options = {"device": device, "clip_grad": clip_grad, "lr": 4e-3 if clip_grad else 1e-3}
    plain = {seed: train(batches, seed, "reference", "float32", CURVE, engine="eager", **options)[0] for seed in (0, 1)}
    smooth = {seed: np.convolve(curve, np.ones(20) / 20, mode="valid") for seed, curve in plain.items()}
    spread = np.abs(smooth[0] - smooth[1])
    for engine in engine_names(device):
        fast = train(batches, 0, "auto", "auto", CURVE, engine=engine, **options)[0]
        distance = np.abs(np.convolve(fast, np.ones(20) / 20, mode="valid") - smooth[0])
        print(f"{engine}: {distance.mean():.5f} (at most {distance.max():.5f}); seeds {spread.mean():.5f} ({spread.max():.5f})")
        assert distance.mean() <= spread.mean() and distance.max() <= spread.max(), engine
    assert smooth[0][-1] < 0.9 * smooth[0][0]  # not vacuous: it learns


def grads_of(step):
    named = {n: step.params.of[p].grad for n, p in step.model.named_parameters()}
    return {n: grad.clone() for n, grad in named.items() if grad is not None}


class NoHost(TorchDispatchMode):
    """Refuses what would make a GPU wait for Python, or change shapes with its numbers."""

    FORBIDDEN = ("_local_scalar_dense", "item", "nonzero", "is_nonzero", "masked_select", "unique", "equal", "allclose")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().removeprefix("aten::").partition(".")[0]
        assert name not in self.FORBIDDEN, f"{function} asks the device for a number"
        if name == "index":
            assert not any(i is not None and i.dtype == torch.bool for i in args[1]), "a boolean index waits for its count"
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_the_step_asks_the_device_for_nothing(stage, monkeypatch):
    """What a CUDA graph needs, proven on a CPU: every op of the step is seen."""
    from avfmae_benchmarks.sides import finetuning_loss, host_batch, our_model

    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # no checks of indices, which are for CPUs only
    model = our_model(TINY.replace(drop_path=0.0 if stage == "pretrain" else 0.1), stage)
    loss = pretraining_loss if stage == "pretrain" else finetuning_loss
    batch = host_batch(TINY, stage, 4)
    step = TrainingStep(model, loss, OptimConfig(clip_grad=1.0, ema=0.99), 100, 10, precision="bf16")
    with K.use("cpp") if K.explain()["adamw"]["cpp"] in ("runs", "can run") else K.use("auto"):
        step([batch])  # moments are made
        with NoHost():
            values = step([batch])
    assert {"loss", "grad_norm", "lr", "skipped", "in_a_row"} <= set(values)
    with pytest.raises(AssertionError, match="asks the device"), NoHost():
        float(values["loss"])


def test_copies_follow_the_weights_and_tokens_and_norms_stay_in_float32():
    model, step = small("bf16")
    compute = {n: step.params.of[p] for n, p in model.named_parameters()}
    copied = {n for n, p in compute.items() if p.dtype == torch.bfloat16}
    assert copied == set(linear_parameters(model))
    assert "video_encoder.embed.proj.weight" in copied and "video_encoder.blocks.0.local_attn.q_bias" in copied
    assert not any("norm" in n or n.endswith(("region_tokens", "mask_token")) for n in copied)
    before = copy.deepcopy(dict(model.named_parameters()))
    step([random_batch()])
    step([random_batch(1)])
    parameters = dict(model.named_parameters())
    moved = [n for n in copied if not torch.equal(before[n], parameters[n])]
    assert len(moved) > 100
    for name in copied:
        assert torch.equal(compute[name], parameters[name].to(torch.bfloat16)), name
    assert all(p.dtype == torch.float32 for p in model.parameters())
    with torch.no_grad():
        parameters["video_decoder.head.weight"].add_(1)
    step.params.refresh()
    assert torch.equal(compute["video_decoder.head.weight"], parameters["video_decoder.head.weight"].to(torch.bfloat16))


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_recomputed_blocks_use_the_copies_too(recompute):
    """In the backward pass the model must still compute with what gradients are taken of."""
    gradients = []
    for kind in ("none", recompute):
        torch.manual_seed(0)
        model = avfmae.AVFMAEForPretraining(TINY.replace(recompute=kind))
        step = TrainingStep(model, pretraining_loss, OptimConfig(), 100, 10, precision="bf16")
        step.backward([random_batch()])
        gradients.append(grads_of(step))
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 200
    for name, gradient in gradients[0].items():
        distance = float((gradients[1][name] - gradient).norm()) / max(float(gradient.norm()), 1e-6)
        assert distance < 0.02, name  # bfloat16 gradients of reused weights add up in another order
    assert all(p.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("clip_grad", [None, 1.0])
def test_what_is_not_finite_changes_nothing_but_the_counters(precision, clip_grad):
    _, step = small(precision, clip_grad=clip_grad)
    step([random_batch()])
    bad = random_batch(1)
    bad.audio[0] = torch.nan
    before, copies = written(step), [p.detach().clone() for p in step.params.of.values()]
    for count in (1, 2):
        values = step([bad])
        assert float(values["skipped"]) == float(values["in_a_row"]) == count
    assert all(map(torch.equal, before, written(step))) and all(map(torch.equal, copies, step.params.of.values()))
    values = step([random_batch(2)])
    assert float(values["skipped"]) == 2 and float(values["in_a_row"]) == 0 and torch.isfinite(values["loss"])


@pytest.mark.parametrize("frozen", [False, True])
def test_frozen_batch_statistics_stay_from_the_first_step_on(frozen):
    from avfmae.models.iavcl import BatchNorm

    torch.manual_seed(0)
    model = avfmae.AVFMAEForPretraining(TINY)
    norms = [m for m in model.modules() if isinstance(m, BatchNorm)]
    for norm in norms:
        norm.frozen = frozen
    step = TrainingStep(model, pretraining_loss, OptimConfig(), 100, 10)
    step([random_batch()])
    assert norms and all(torch.equal(n.running_mean, torch.zeros_like(n.running_mean)) == frozen for n in norms)


def test_the_gradient_is_clipped_and_the_rate_follows_the_schedule(precision):
    _, step = small(precision, clip_grad=1e-3, lr=0.1, warmup_lr=0.02, total_batch=256)
    rates = [float(step([random_batch(k)])["lr"]) for k in range(3)]
    assert rates == pytest.approx([learning_rate(k, 10, step.optim) for k in range(3)], rel=1e-6) and rates[0] < rates[2]
    moments = torch.cat([s["exp_avg"].flatten() for s in step.optimizer.state.values()])
    assert float(moments.norm()) < 1e-3  # a mean of vectors of that length


def test_accumulated_micro_batches_make_the_mean_gradient(precision):
    first, second = random_batch(0), random_batch(1)
    norms = []
    for batches in ([first], [second], [first, second]):
        _, step = small(precision, micro_batches=2)
        step.backward(batches)
        norms.append(grads_of(step))
    for name, gradient in norms[2].items():
        mean = (norms[0][name].float() + norms[1][name].float()) / 2
        assert torch.allclose(gradient, mean, atol=1e-4 * float(mean.abs().max()) + 1e-7), name


@pytest.mark.parametrize("engine", engine_names("cpu"))
@pytest.mark.parametrize("when", ["between", "before, and thawed"])
def test_frozen_weights_stay(precision, when, engine):
    """Frozen between two steps, or frozen at first and then trained."""
    torch.manual_seed(0)
    model = avfmae.AVFMAEForPretraining(TINY)
    part = model.video_encoder.blocks[0].mlp
    thawed = when == "before, and thawed"
    part.requires_grad_(not thawed)
    step = engines.build(engine, TrainingStep(model, pretraining_loss, OptimConfig(lr=1e-2), 100, 10, precision=precision))

    def moved(freeze: bool) -> bool:
        part.requires_grad_(not freeze)
        before = [p.clone() for p in part.parameters()]
        for k in range(EAGER_STEPS + 2):  # eager, recorded, replayed
            step([random_batch(k)])
        return not all(torch.equal(a, b) for a, b in zip(before, part.parameters(), strict=True))

    assert moved(freeze=thawed) is not thawed
    assert moved(freeze=not thawed) is thawed


def test_gradients_of_several_micro_batches_add_up_in_float32():
    _, step = small("bf16", micro_batches=2)
    step.backward([random_batch(0), random_batch(1)])
    assert {grad.dtype for grad in grads_of(step).values()} == {torch.float32}


def test_the_running_average_of_weights():
    model, step = small(ema=0.9, lr=1e-2)
    expected = [p.detach().clone() for p in model.parameters()]
    for k in range(3):
        step([random_batch(k)])
        expected = [0.9 * e + 0.1 * p.detach() for e, p in zip(expected, model.parameters(), strict=True)]
    assert all(torch.allclose(a, e, atol=1e-6) for a, e in zip(step.averaged, expected, strict=True))


@pytest.mark.exhaustive
def test_a_compiled_forward_gives_the_same_loss(monkeypatch):
    torch.manual_seed(0)
    model = avfmae.AVFMAEForPretraining(
        TINY.replace(depth=2, skip_blocks=(0, 1), fusion_depth=1)
    )  # tracing takes a second a block
    step = TrainingStep(model, pretraining_loss, OptimConfig(), 100, 10, precision="float32")
    monkeypatch.setattr(torch, "compile", lambda f, compiler=torch.compile: compiler(f, backend="aot_eager"))
    torch.manual_seed(0)
    twin = copy.deepcopy(model)
    other = TrainingStep(twin, pretraining_loss, step.optim, 100, 10, precision="float32", forward=torch.compile(twin))
    for k in range(2):
        a, b = step([random_batch(k)])["loss"], other([random_batch(k)])["loss"]
        assert float(a) == pytest.approx(float(b), rel=1e-5)


def test_precision_auto_is_what_the_processor_multiplies():
    cpu = torch.device("cpu")
    assert compute_dtype("float32", cpu) == torch.float32 and compute_dtype("bf16", cpu) == torch.bfloat16
    assert compute_dtype("auto", cpu) == (torch.bfloat16 if processor.has("avx512_bf16") else torch.float32)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_graph_gives_the_losses_of_the_eager_step(precision):
    """Replayed, with inputs, rates and weights that change; a bad batch is left out by the graph as well."""
    losses = []
    for graph in (False, True):
        torch.manual_seed(0)
        model = avfmae.AVFMAEForPretraining(TINY).cuda()
        step = TrainingStep(model, pretraining_loss, OptimConfig(lr=1e-2, clip_grad=1.0), 100, 10, precision=precision)
        execute = engines.build("cuda_graph" if graph else "eager", step)
        found = []
        for k in range(EAGER_STEPS + 8):
            batch = random_batch(k)
            if k == EAGER_STEPS + 4:
                batch.audio[0] = torch.nan
            values = execute([batch.to(torch.device("cuda"))])
            found.append([float(values[n]) for n in ("loss", "grad_norm", "lr", "skipped")])
        losses.append(found)
        assert (getattr(execute, "graph", None) is not None) == graph and found[-1][3] == 1
    assert np.allclose(*losses, rtol=1e-4 if precision == "float32" else 2e-2, equal_nan=True)
