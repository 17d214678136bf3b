"""The members of the family: published sizes, released numbers, released files, one step of each."""

import golden
import pytest
import torch
from safetensors.torch import load_file

import avfmae
from avfmae.config import PRESETS
from avfmae.tasks.reconstruction import pretraining_loss
from avfmae_benchmarks.sides import host_batch

OUTPUT, GRADIENT, BFLOAT16 = 1e-4, 1e-3, 2e-2
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


@pytest.mark.slow
def test_mae_dfer_gives_the_released_numbers():
    reference = load_file(golden.DATA / "mae_dfer.safetensors")
    model = avfmae.AVFMAEForPretraining(preset("mae_dfer"))
    report = avfmae.load_released(model, golden.weights("mae_dfer_pretraining"))
    assert not report.dropped and not report.missing
    masks = avfmae.DualMask.from_bool(reference["em"])
    out = model(golden.batch()[0], None, masks)  # no noise: training and evaluation are one
    assert golden.relative(out.pred_video[:, ::9, ::3].detach(), reference["eval_video"]) <= OUTPUT
    assert golden.relative(out.loss.detach(), reference["loss"]) <= OUTPUT
    out.loss.backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    assert golden.relative(norm, reference["total_grad_norm"]) <= GRADIENT
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        pred = model(golden.batch()[0], None, masks).pred_video
    assert golden.relative(pred[:, ::9, ::3].float(), reference["eval_video"]) <= BFLOAT16


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "file", "keys"),
    [
        ("mae_dfer", "mae_dfer", "mae_dfer_finetuning_11_classes"),
        ("svfap", "svfap", "svfap_finetuning_11_classes"),
        ("hicmae_base", "hicmae_finetuning", "hicmae_finetuning_11_classes"),
    ],
    ids=["mae_dfer", "svfap", "hicmae"],
)
def test_members_fine_tune_to_the_released_numbers(name, file, keys):
    reference = load_file(golden.DATA / f"{file}.safetensors")
    model = avfmae.AVFMAEForFinetuning(preset(name), 11)
    report = avfmae.load_released(model, golden.weights(keys))
    assert not report.dropped and not report.missing
    with torch.no_grad():
        assert golden.relative(model.eval()(*golden.batch()).logits, reference["ft_logits"]) <= OUTPUT


@pytest.mark.parametrize("name", ["mae_dfer_pretraining", "svfap_pretraining"])
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
    "name", [n for n in PRESETS if n not in ("tiny", "base", "large", "huge", "videomae_base", "audiomae_base")]
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
