"""The released models' numbers: outputs and losses to 1e-4, gradient norms to 1e-3, in bfloat16 all to 2e-2 (relative L2)."""

import golden
import pytest
import torch
from backends import GPU, require
from safetensors.torch import load_file

import avfmae
from avfmae.training.optim import decays
from avfmae_kernels.masked_patch_loss.reference import patch_targets

pytestmark = [pytest.mark.isa, pytest.mark.slow, pytest.mark.xdist_group("golden")]  # models of 190 million weights are made once

OUTPUT, _ = golden.TOLERANCE[torch.float32]
FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16
PLACES = [  # implementation, device and dtype; every number must hold in each
    *(pytest.param((name, "cpu", FLOAT32), id=name) for name in ("auto", "reference")),
    pytest.param(("cpp", "cpu", FLOAT32), id="cpp", marks=pytest.mark.exhaustive),  # nearly all of auto's
    pytest.param(("auto", "cpu", BFLOAT16), id="bfloat16"),
    *(pytest.param((name, "cuda", FLOAT32), id=f"{name}-gpu", marks=GPU) for name in ("auto", "reference")),
    pytest.param(("auto", "cuda", BFLOAT16), id="bfloat16-gpu", marks=GPU),
]


@pytest.fixture(params=PLACES)
def place(request):
    """The device and the tolerances, with the implementation and the dtype in use."""
    implementation, device, dtype = request.param
    require("add_layer_norm", implementation if implementation != "auto" else "reference", device)
    with golden.computing(*request.param):
        yield device, *golden.TOLERANCE[dtype]


def batch(device):
    return [x.to(device) for x in golden.batch()]


def same_logits(out, reference, tolerance):
    """Of all levels at once: those of one are small differences of large numbers."""
    expected = torch.stack([reference[f"eval_logits_{level}"] for level in range(3)])
    return golden.relative(torch.stack(out.logits).detach(), expected) <= tolerance


def losses(out):
    return torch.stack([out.loss, out.loss_video, out.loss_audio, out.loss_contrastive]).detach()


def gradient_norms(model, keys):
    gradients = avfmae.released_gradients(model)
    return torch.stack([gradients[name].norm() for name, _ in golden.keys(keys) if not golden.is_buffer(name)])


@pytest.fixture(scope="module")
def avf_on_cpu():
    reference = load_file(golden.DATA / "avfmae_base.safetensors")
    cfg = avfmae.ModelConfig.preset("base").replace(token_order="released", region_mode="released")
    model = avfmae.AVFMAEForPretraining(cfg)
    report = avfmae.load_released(model, golden.weights("avfmae_pretraining"))
    assert not report.dropped and not report.missing
    return model, reference, avfmae.DualMask.from_bool(*(reference[k] for k in ("em", "dm", "ea", "da")))


@pytest.fixture
def avf(avf_on_cpu, place):
    model, reference, masks = avf_on_cpu
    yield model.to(place[0]), reference, masks.to(place[0])
    model.cpu()


def test_avfmae_predictions(avf, place):
    model, reference, masks = avf
    device, output, _ = place
    model.eval()
    with torch.no_grad():
        out = model(*batch(device), masks)
    assert out.pred_video.shape == (3, 400, 1536) and out.pred_audio.shape == (3, 64, 256)
    assert golden.relative(out.pred_video[:, ::5, ::3], reference["eval_video"]) <= output
    assert golden.relative(out.pred_audio, reference["eval_audio"]) <= output
    assert same_logits(out, reference, output)


def test_avfmae_targets(avf_on_cpu):
    _, reference, _ = avf_on_cpu
    video, audio = golden.batch()
    everything = torch.arange(800).expand(3, -1)
    assert golden.relative(patch_targets(video, everything, [2, 16, 16])[:, ::40, ::5], reference["target_video"]) <= OUTPUT
    assert golden.relative(patch_targets(audio, everything[:, :128], [16, 16])[:, ::8], reference["target_audio"]) <= OUTPUT


def test_avfmae_training_step(avf, place):
    model, reference, masks = avf
    device, output, gradient = place
    model.train()
    model.zero_grad()
    out = model(*batch(device), masks)
    out.loss.backward()
    assert golden.relative(losses(out), reference["loss"]) <= output
    norms = gradient_norms(model, "avfmae_pretraining")
    assert golden.relative(norms, reference["grad_norms"]) <= gradient
    # what cannot reach the loss is not computed, and so has no gradient at all
    dead = [n for n, p in model.named_parameters() if p.grad is None]
    assert any(n.startswith("video_encoder.blocks.9.collect") for n in dead)
    assert all(reference["grad_norms"][i] == 0 for i, n in enumerate(norms) if n == 0)


@pytest.fixture(scope="module")
def classifier_on_cpu():
    model = avfmae.AVFMAEForFinetuning(avfmae.ModelConfig.preset("base"), 11)
    avfmae.load_released(model, golden.weights("avfmae_finetuning_11_classes"))
    return model.eval(), load_file(golden.DATA / "avfmae_base.safetensors")


def test_avfmae_finetuning(classifier_on_cpu, place):
    model, reference = classifier_on_cpu
    device, output, _ = place
    with torch.no_grad():
        out = model.to(device)(*batch(device))
    assert golden.relative(out.logits, reference["ft_logits"]) <= output
    assert golden.relative(out.features, reference["ft_feature"]) <= output


@pytest.fixture(scope="module")
def hicmae_on_cpu():
    model = avfmae.AVFMAEForPretraining(avfmae.ModelConfig.preset("hicmae_base"))
    avfmae.load_released(model, golden.weights("hicmae_pretraining"))
    return model, load_file(golden.DATA / "hicmae_base.safetensors")


def test_hicmae(hicmae_on_cpu, place):
    model, reference = hicmae_on_cpu
    device, output, gradient = place
    masks = avfmae.DualMask.from_bool(reference["em"], None, reference["ea"], None)
    model.zero_grad()
    out = model.to(device)(*batch(device), masks.to(device))  # no batch statistics and no noise: training and evaluation are one
    assert golden.relative(out.pred_video[:, ::9, ::3].detach(), reference["eval_video"]) <= output
    assert golden.relative(out.pred_audio.detach(), reference["eval_audio"]) <= output
    assert same_logits(out, reference, output)
    assert golden.relative(losses(out), reference["loss"]) <= output
    out.loss.backward()
    assert golden.relative(gradient_norms(model, "hicmae_pretraining"), reference["grad_norms"]) <= gradient


@pytest.mark.parametrize(
    ("preset", "pretraining", "finetuning"),
    [("base", 187_942_660, 169_122_851), ("large", 336_322_308, 303_233_319), ("huge", 572_665_092, 521_309_229)],
)
def test_parameter_counts(preset, pretraining, finetuning):
    cfg = avfmae.ModelConfig.preset(preset)
    with torch.device("meta"):
        assert sum(p.numel() for p in avfmae.AVFMAEForPretraining(cfg).parameters()) == pretraining
        assert sum(p.numel() for p in avfmae.AVFMAEForFinetuning(cfg, 11).parameters()) == finetuning


def test_hicmae_parameter_count():
    with torch.device("meta"):
        model = avfmae.AVFMAEForPretraining(avfmae.ModelConfig.preset("hicmae_base"))
    assert sum(p.numel() for p in model.parameters()) == 99_609_344
    assert not any(decays(n, p) for n, p in model.named_parameters() if p.ndim == 1)
