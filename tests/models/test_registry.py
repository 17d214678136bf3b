"""An encoder that one file adds does all that the others do."""

import dataclasses

import pytest
import torch
import toys.toy_encoder  # noqa: F401  (registers itself)

import avfmae
from avfmae.checkpoints import read_about, save_weights
from avfmae.training.config import OptimConfig
from avfmae.training.optim import parameter_groups

TINY = avfmae.ModelConfig.preset("tiny")
TOY = TINY.replace(encoder="toy")


def clips(count=3):
    g = torch.Generator().manual_seed(0)
    video = torch.randint(0, 256, (count, *TINY.video.size, 3), dtype=torch.uint8, generator=g)
    return video, torch.randn(count, 1, *TINY.audio.size, generator=g)


def take_step(model, loss_of):
    """One AdamW step; returns the loss before and after it."""
    optimiser = torch.optim.AdamW(parameter_groups(model, OptimConfig(layer_decay=0.5)), lr=1e-3)
    for group in optimiser.param_groups:
        group["lr"] *= group["lr_scale"]
    before = loss_of()
    before.backward()
    optimiser.step()
    return float(before.detach()), float(loss_of().detach())


@pytest.mark.parametrize("fusion", ["iavcl", "cross"])
def test_toy_encoder_pretrains(fusion):
    torch.manual_seed(0)
    model = avfmae.AVFMAEForPretraining(TOY.replace(fusion=fusion))
    masks = avfmae.DualMask.sample(TOY, 3, torch.Generator().manual_seed(0))
    before, after = take_step(model, lambda: model(*clips(), masks).loss)
    assert after < before


@pytest.mark.parametrize("modalities", [("video", "audio"), ("audio",)], ids="+".join)
def test_toy_encoder_finetunes(modalities):
    torch.manual_seed(0)
    model = avfmae.AVFMAEForFinetuning(TOY.replace(modalities=modalities), 2)
    labels = torch.tensor([0, 1, 1])
    before, after = take_step(model, lambda: torch.nn.functional.cross_entropy(model(*clips()).logits, labels))
    assert after < before


def test_toy_encoder_is_saved_and_loaded(tmp_path):
    path = tmp_path / "weights.safetensors"
    model = avfmae.AVFMAEForPretraining(TOY)
    save_weights(model, path)
    assert read_about(path)["config"] == TOY
    assert "encoder_audio.layers.3.weight" in avfmae.released_state_dict(model)
    other = avfmae.AVFMAEForPretraining(TOY)
    assert not avfmae.load_released(other, path).missing
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))
    classifier = avfmae.AVFMAEForFinetuning(TOY, 2)
    avfmae.load_released(classifier, path)
    assert torch.equal(classifier.video_encoder.blocks[2].weight, model.video_encoder.blocks[2].weight)


def test_toy_encoder_has_layer_numbers():
    model = avfmae.AVFMAEForFinetuning(TOY, 2)  # 4 blocks, 2 fusion units
    assert model.last_layer == 7
    layers = {name: model.layer_of(name) for name, _ in model.named_parameters()}
    assert layers["video_encoder.embed.proj.weight"] == 0 and layers["audio_encoder.blocks.3.bias"] == 4
    assert layers["fusion.audio_units.1.norm.weight"] == 6 and layers["head.weight"] == layers["audio_encoder.norm.bias"] == 7


@pytest.mark.parametrize(
    ("preset", "encoder", "fusion", "parameters"),
    [("hicmae_base", "vit", "cross", 99_609_344), ("base", "lgi4", "cross", 162_726_656), ("base", "lgi4", "iavcl", 187_942_660)],
    ids=["hicmae", "lgi4+cross", "lgi4+iavcl"],
)
def test_combinations_have_the_published_sizes(preset, encoder, fusion, parameters):
    cfg = avfmae.ModelConfig.preset(preset).replace(encoder=encoder, fusion=fusion)
    with torch.device("meta"):
        model = avfmae.AVFMAEForPretraining(cfg)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_plain_encoder_finetunes_with_iavcl():
    assert avfmae.AVFMAEForFinetuning(TINY.replace(encoder="vit"), 2)(*clips()).logits.shape == (3, 2)


def test_layer_numbers_are_those_of_the_recipe():
    """Of every kind of parameter, pre-training's included."""
    model = avfmae.AVFMAEForPretraining(TINY)
    wanted = {
        "video_encoder.region_tokens": 0, "video_decoder.embed.weight": 0, "audio_decoder.mask_token": 0,
        "audio_encoder.blocks.0.mlp.fc1.weight": 1, "fusion.video_units.0.norm.weight": 5, "fusion.joint_norm.weight": 7,
        "fusion.video_aggregation.weight.weight": 7, "video_decoder.blocks.0.attn.q_bias": 7, "audio_decoder.head.bias": 7,
    }  # fmt: skip
    assert {name: model.layer_of(name) for name in wanted} == wanted
    cross = avfmae.AVFMAEForPretraining(TINY.replace(fusion="cross"))
    assert cross.layer_of("fusion.audio_blocks.1.attn.q_bias") == 6 and cross.layer_of("fusion.audio_norm.weight") == 7


@pytest.mark.parametrize("family", ["avfmae", "hicmae"])
def test_files_that_name_a_family_load(family, tmp_path):
    """As they were written before encoders and fusions had names."""
    import json

    from safetensors.torch import load_file, save_file

    cfg = TINY
    if family == "hicmae":
        modalities = {
            n: dataclasses.replace(m, decoded=m.tokens - m.visible) for n, m in (("video", TINY.video), ("audio", TINY.audio))
        }
        cfg = TINY.replace(encoder="vit", fusion="cross", balanced_masks=False, decoder_masks=False, **modalities)
    model = avfmae.AVFMAEForPretraining(cfg)
    save_weights(model, tmp_path / "new.safetensors")
    saved = dataclasses.asdict(cfg)
    later = ("modalities", "stages", "decoder_depth", "frame_difference", "unmasked_context", "residual")
    for name in ("encoder", "fusion", "balanced_masks", "decoder_masks", *later):
        del saved[name]
    saved["family"] = family
    save_file(load_file(tmp_path / "new.safetensors"), tmp_path / "old.safetensors", {"config": json.dumps(saved), "steps": "7"})
    about = read_about(tmp_path / "old.safetensors")
    assert about == {"config": cfg, "steps": 7}
    other = avfmae.AVFMAEForPretraining(about["config"])
    avfmae.load_released(other, tmp_path / "old.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))
