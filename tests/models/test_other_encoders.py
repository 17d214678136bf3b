"""Encoders of other projects begin our models: names, packed biases, tables of positions."""

import pytest
import torch
from safetensors.torch import save_file

import avfmae
from avfmae.checkpoints import read_about, save_weights
from avfmae.checkpoints.encoders import resampled

TINY = avfmae.ModelConfig.preset("tiny")
VIDEO, AUDIO = (avfmae.ModelConfig.preset(f"{name}mae_base").at_size_of(TINY) for name in ("video", "audio"))


def encoder_file(cfg, classes=0, grid=None):
    """A published encoder, as VideoMAE's, and with ``grid`` as AudioMAE's: packed biases, and positions of that grid."""
    torch.manual_seed(1)
    weights = avfmae.released_state_dict(avfmae.AVFMAEForPretraining(cfg))
    start = "encoder." if cfg.modalities == ("video",) else "encoder_audio."
    file = {n.removeprefix(start): torch.randn_like(t) for n, t in weights.items() if n.startswith(start)}
    if grid:
        for name in [n for n in file if n.endswith("q_bias")]:
            attention = name.removesuffix("q_bias")
            q, v = file.pop(name), file.pop(attention + "v_bias")
            file[attention + "qkv.bias"] = torch.cat([q, torch.randn_like(q), v])
        file["pos_embed"] = torch.randn(1, classes + grid[0] * grid[1], cfg.width)
        file["cls_token"] = torch.randn(1, 1, cfg.width)
    return file


@pytest.mark.parametrize(
    "kind", [avfmae.AVFMAEForPretraining, lambda cfg: avfmae.AVFMAEForFinetuning(cfg, 2)], ids=["pre", "fine"]
)
@pytest.mark.parametrize("form", ["bare", "pickle", "safetensors"])
def test_a_video_encoder_begins_a_model(kind, form, tmp_path):
    file, model = encoder_file(VIDEO), kind(VIDEO)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    source = file
    if form == "pickle":
        source = tmp_path / "encoder.pth"
        torch.save({"model": file, "epoch": 3}, source)
    elif form == "safetensors":
        source = tmp_path / "encoder.safetensors"
        save_file(file, source)
    report = avfmae.load_released(model, source)
    assert report.missing and {n.split(".")[0] for n in report.missing} <= {
        "decoder", "mask_token", "encoder_to_decoder", "fc_norm", "head"
    }  # fmt: skip
    assert torch.equal(model.video_encoder.blocks[3].mlp.fc1.weight, file["blocks.3.mlp.fc1.weight"])
    fresh = [n for n in before if not n.startswith("video_encoder.")]
    assert fresh and all(torch.equal(before[n], model.state_dict()[n]) for n in fresh)


def test_a_part_of_an_encoder_is_refused():
    file = encoder_file(VIDEO)
    del file["blocks.2.mlp.fc1.weight"]
    with pytest.raises(ValueError, match=r"lacks 1 of the model's .* encoder\.blocks\.2\.mlp\.fc1\.weight first"):
        avfmae.load_released(avfmae.AVFMAEForPretraining(VIDEO), file)


def test_packed_biases_are_those_of_queries_and_values():
    file, model = encoder_file(AUDIO, 1, (16, 8)), avfmae.AVFMAEForFinetuning(AUDIO, 2)
    report = avfmae.load_released(model, file)
    attention, bias = model.audio_encoder.blocks[0].attn, file["blocks.0.attn.qkv.bias"]
    q, _, v = bias.chunk(3)
    assert torch.equal(attention.q_bias, q) and torch.equal(attention.v_bias, v)
    assert "4 qkv.bias: taken apart" in str(report) and "cls_token" in str(report)


@pytest.mark.parametrize(("classes", "grid"), [(1, (16, 8)), (1, (64, 8)), (0, (10, 8))], ids=["same", "longer", "shorter"])
def test_tables_of_positions_are_resampled_saved_and_loaded(classes, grid, tmp_path):
    file, model = encoder_file(AUDIO, classes, grid), avfmae.AVFMAEForPretraining(AUDIO)
    report = avfmae.load_released(model, file)
    assert ("resampled from" in str(report)) == (grid != AUDIO.audio.grid)
    positions = model.audio_encoder.embed.positions
    if grid == AUDIO.audio.grid:
        assert torch.equal(positions, file["pos_embed"][0, 1:])
    save_weights(model, tmp_path / "weights.safetensors")
    other = avfmae.AVFMAEForFinetuning(read_about(tmp_path / "weights.safetensors")["config"], 3)
    assert not torch.equal(other.audio_encoder.embed.positions, positions)
    avfmae.load_released(other, tmp_path / "weights.safetensors")
    assert torch.equal(other.audio_encoder.embed.positions, positions)


def test_resampling_keeps_what_is_linear():
    m = TINY.video  # 8 x 4 x 4
    t, y, x = torch.meshgrid(*(torch.arange(n) + 0.5 for n in (8, 8, 8)), indexing="ij")
    table, _ = resampled("pos_embed", torch.stack([t, y, x], dim=-1).reshape(1, -1, 3), m)
    t, y, x = torch.meshgrid(*(torch.arange(n) + 0.5 for n in m.grid), indexing="ij")
    torch.testing.assert_close(table, torch.stack([t, 2 * y, 2 * x], dim=-1).reshape(-1, 3))


def test_positions_of_no_grid_are_refused():
    with pytest.raises(ValueError, match=r"pos_embed: got 77 positions, expected 128"):
        resampled("pos_embed", torch.zeros(1, 77, 64), TINY.audio)
