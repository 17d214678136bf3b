"""The members of the family: published sizes, released numbers, released files, one step of each."""

from dataclasses import replace

import golden
import pytest
import torch
from safetensors.torch import load_file

import avfmae
from avfmae.config import PRESETS
from avfmae.tasks.reconstruction import pretraining_loss
from avfmae_benchmarks.sides import host_batch

DEMO = avfmae.ModelConfig.preset("demo")


def preset(name):
    cfg = avfmae.ModelConfig.preset(name)
    return cfg.replace(token_order="released", region_mode="released") if name == "mae_dfer" else cfg


@pytest.mark.parametrize(
    ("name", "pretraining", "finetuning"),
    [
        ("mae_dfer", 92_760_192, 84_880_395),
        ("svfap", 85_517_200, 77_637_403),
        ("hicmae_base", 99_609_344, 80_802_847),
        ("ablation_lgi3", 141_683_456, None),
        ("ablation_lgi4", 162_726_656, None),
    ],
)
def test_members_have_the_published_sizes(name, pretraining, finetuning):
    cfg = avfmae.ModelConfig.preset(name)
    with torch.device("meta"):
        assert sum(p.numel() for p in avfmae.AVFMAEForPretraining(cfg).parameters()) == pretraining
        if finetuning:
            assert sum(p.numel() for p in avfmae.AVFMAEForFinetuning(cfg, 11).parameters()) == finetuning


@pytest.fixture(
    params=[
        pytest.param(("auto", torch.float32), id="auto"),
        pytest.param(("auto", torch.bfloat16), id="bfloat16"),
        pytest.param(("reference", torch.float32), id="reference", marks=pytest.mark.exhaustive),
    ]
)
def tolerances(request):
    """Of outputs and losses, and of gradient norms, with an implementation and a dtype in use."""
    implementation, dtype = request.param
    with golden.computing(implementation, "cpu", dtype):
        yield golden.TOLERANCE[dtype]


@pytest.fixture(scope="module", params=["mae_dfer", "svfap"])
def pretraining(request):
    model = avfmae.AVFMAEForPretraining(preset(request.param))
    report = avfmae.load_released(model, golden.weights(f"{request.param}_pretraining"))
    assert not report.dropped and not report.missing
    return model, load_file(golden.DATA / f"{request.param}.safetensors")


def total_norm(model):
    return torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()


@pytest.mark.slow
def test_video_members_pre_train_to_the_released_numbers(pretraining, tolerances):
    (model, reference), (output, gradient) = pretraining, tolerances
    model.zero_grad()
    out = model(golden.batch()[0], None, avfmae.DualMask.from_bool(reference["em"]))  # no noise: training and evaluation are one
    assert golden.relative(out.pred_video[:, ::9, ::3].detach(), reference["eval_video"]) <= output
    assert golden.relative(out.loss.detach(), reference["loss"]) <= output
    out.loss.backward()
    assert golden.relative(total_norm(model), reference["total_grad_norm"]) <= gradient


@pytest.fixture(scope="module", params=["mae_dfer", "svfap", "hicmae"])
def finetuning(request):
    model = avfmae.AVFMAEForFinetuning(preset("hicmae_base" if request.param == "hicmae" else request.param), 11)
    report = avfmae.load_released(model, golden.weights(f"{request.param}_finetuning_11_classes"))
    assert not report.dropped and not report.missing
    file = "hicmae_finetuning" if request.param == "hicmae" else request.param
    return model.eval(), load_file(golden.DATA / f"{file}.safetensors")


@pytest.mark.slow
def test_members_fine_tune_to_the_released_numbers(finetuning, tolerances):
    (model, reference), (output, gradient) = finetuning, tolerances
    trains = "ft_feature" in reference  # HiCMAE's loss is of fine-tuning, the others' of pre-training
    with torch.set_grad_enabled(trains):
        out = model(*golden.batch())
    assert golden.relative(out.logits.detach(), reference["ft_logits"]) <= output
    if trains:
        assert golden.relative(out.features.detach(), reference["ft_feature"]) <= output
        model.zero_grad()
        loss = torch.nn.functional.cross_entropy(out.logits.float(), torch.tensor([1, 4, 7]))
        loss.backward()
        assert golden.relative(loss.detach(), reference["loss"]) <= output
        assert golden.relative(total_norm(model), reference["total_grad_norm"]) <= gradient


def test_coarse_stages_go_to_their_own_places():
    """But in SVFAP's order, in which runs of half a time step are repeated, each in place of a whole one."""
    cfg = preset("svfap").at_size_of(DEMO).replace(token_order="raster")
    encoder = avfmae.AVFMAEForPretraining(cfg).video_encoder
    batch = host_batch(cfg, "pretrain", 2)
    visible, released = batch.masks.video.visible, avfmae.AVFMAEForPretraining(cfg.replace(token_order="released")).video_encoder
    released.load_state_dict(encoder.state_dict())
    with torch.no_grad():
        fine, coarse = encoder.pyramid(encoder.embed(batch.video, visible))  # (B, 2, P, C), (B, 1, P, C)
        expected = encoder.norm((fine + coarse).flatten(1, 2))
        assert golden.relative(encoder.encode_visible(batch.video, visible)[0], expected) < 1e-5
        half = coarse.shape[2] // 2
        mixed = torch.cat([coarse[:, :, :half], coarse[:, :, :half], coarse[:, :, half:], coarse[:, :, half:]], dim=2)
        expected = released.norm(fine.flatten(1, 2) + mixed.flatten(1, 2))
        assert golden.relative(released.encode_visible(batch.video, visible)[0], expected) < 1e-5
    with pytest.raises(ValueError, match="token_order: got 'released' with encoder='tpsbt' and 9 visible tokens a time step"):
        avfmae.AVFMAEForPretraining(cfg.replace(token_order="released", video=replace(cfg.video, visible=18, decoded=14)))


@pytest.mark.parametrize("name", ["mae_dfer_pretraining", "svfap_pretraining"])
@pytest.mark.slow
def test_a_released_pre_training_begins_a_fine_tuning(name):
    """The encoder's tensors are found behind ``encoder.``; the decoder is dropped, the head stays as it is."""
    cfg = preset(name.removesuffix("_pretraining"))
    model = avfmae.AVFMAEForFinetuning(cfg, 11)
    weights = golden.weights(name)
    report = avfmae.load_released(model, weights)
    assert {n.split(".")[0] for n in report.missing} <= {"fc_norm", "head"} and len(report.matched) > 300
    weight = "blocks.0.mlp.fc1.weight"
    assert torch.equal(model.video_encoder.get_parameter(weight), weights[f"encoder.{weight}"])


@pytest.mark.parametrize(
    "name", [n for n in PRESETS if n not in ("tiny", "base", "large", "huge", "giant", "videomae_base", "audiomae_base")]
)
def test_every_member_learns_in_both_stages(name):
    """At the demo's size, some steps lower the loss of their batch."""
    torch.manual_seed(0)
    cfg = avfmae.ModelConfig.preset(name).at_size_of(DEMO)
    batch = host_batch(cfg, "pretrain", 4)
    model = avfmae.AVFMAEForPretraining(cfg)
    assert learns(model, lambda: pretraining_loss(model, batch)[0])
    tuned = avfmae.AVFMAEForFinetuning(cfg, 3)
    labels = torch.tensor([0, 1, 2, 0])
    assert learns(tuned, lambda: torch.nn.functional.cross_entropy(tuned(batch.video, batch.audio).logits, labels))


def learns(model, loss_of) -> bool:
    """Whether three AdamW steps lower the loss."""
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=1e-4), []
    for _ in range(3):
        optimizer.zero_grad()
        losses.append(loss_of())
        losses[-1].backward()
        optimizer.step()
    return bool(losses[-1] < losses[0])
