"""Released files in and out, and files that are none."""

import golden
import pytest
import torch

import avfmae
from avfmae.checkpoints import read_about, save_weights

TINY = avfmae.ModelConfig.preset("tiny")


@pytest.mark.parametrize("kind", ["avfmae_pretraining", "avfmae_finetuning_11_classes", "hicmae_pretraining"])
def test_names_and_shapes_are_the_released_ones(kind):
    cfg = avfmae.ModelConfig.preset("hicmae_base" if kind.startswith("hic") else "base")
    with torch.device("meta"):
        model = {
            "avfmae_pretraining": lambda: avfmae.AVFMAEForPretraining(cfg),
            "avfmae_finetuning_11_classes": lambda: avfmae.AVFMAEForFinetuning(cfg, 11),
            "hicmae_pretraining": lambda: avfmae.HiCMAEForPretraining(cfg),
        }[kind]()
    ours = {name: list(t.shape) for name, t in avfmae.released_state_dict(model).items()}
    assert ours == dict(golden.keys(kind))


@pytest.mark.parametrize("layout", ["model", "module", "bare", "prefixed"])
def test_pickles_of_every_layout_load(layout, tmp_path):
    model = avfmae.AVFMAEForPretraining(TINY)
    state = avfmae.released_state_dict(model)
    content = {
        "model": {"model": state, "epoch": 3}, "module": {"module": state}, "bare": state,
        "prefixed": {"model": {f"module._orig_mod.{n}": t for n, t in state.items()}},
    }[layout]  # fmt: skip
    torch.save(content, tmp_path / "checkpoint.pth")
    other = avfmae.AVFMAEForPretraining(TINY)
    report = avfmae.load_released(other, tmp_path / "checkpoint.pth")
    assert len(report.matched) == len(state) and "tensors loaded" in str(report)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


def test_finetuning_takes_encoders_and_fusion_of_a_pretraining_file(tmp_path):
    model = avfmae.AVFMAEForPretraining(TINY)
    save_weights(model, tmp_path / "weights.safetensors", note="x")
    assert read_about(tmp_path / "weights.safetensors") == {"config": TINY, "note": "x"}
    clf = avfmae.AVFMAEForFinetuning(TINY, 5)
    head = clf.head.weight.clone()
    report = avfmae.load_released(clf, tmp_path / "weights.safetensors")
    assert torch.equal(clf.video_encoder.embed.proj.weight, model.video_encoder.embed.proj.weight)
    assert torch.equal(clf.fusion.feedback_attn.kv.weight, model.fusion.feedback_attn.kv.weight)
    assert torch.equal(clf.head.weight, head)
    assert {n.split(".")[0] for n in report.dropped} == {
        "decoder",
        "decoder_audio",
        "encoder_to_decoder",
        "encoder_to_decoder_audio",
        "mask_token",
        "mask_token_audio",
    }
    assert {n.split(".")[0] for n in report.missing} == {
        "head",
        "fc_norm",
        "layer_weights_video",
        "layer_weights_audio",
    }
    assert "dropped: decoder" in str(report)
    video_only = avfmae.AVFMAEForFinetuning(TINY, 5, modalities=("video",))
    avfmae.load_released(video_only, tmp_path / "weights.safetensors")
    assert torch.equal(video_only.video_encoder.region_tokens, model.video_encoder.region_tokens)


def test_a_head_of_another_size_starts_fresh():
    six, seven = avfmae.AVFMAEForFinetuning(TINY, 6), avfmae.AVFMAEForFinetuning(TINY, 7)
    report = avfmae.load_released(seven, avfmae.released_state_dict(six))
    assert report.resized == ["head.weight", "head.bias"]


def test_gradients_come_under_released_names():
    model = avfmae.AVFMAEForFinetuning(TINY, 2, modalities=("audio",))
    model(audio=torch.randn(2, 1, 256, 128)).logits.sum().backward()
    gradients = avfmae.released_gradients(model)
    packed = model.audio_encoder.blocks[0].local_attn.qkv.weight.grad
    assert torch.equal(gradients["encoder_audio.blocks.0.first_attn.q.weight"], packed[:64])
    assert torch.equal(gradients["encoder_audio.blocks.0.first_attn.kv.weight"], packed[64:])


class Evil:
    def __reduce__(self):
        return print, ("this must not run",)


@pytest.mark.parametrize("kind", ["missing", "empty", "truncated", "text", "code", "no tensors", "bad safetensors"])
def test_files_that_are_no_checkpoint_are_named(kind, tmp_path, capsys):
    path = tmp_path / ("x.safetensors" if "safetensors" in kind else "x.pth")
    model = avfmae.AVFMAEForFinetuning(TINY, 2, modalities=("audio",))
    if kind == "truncated":
        torch.save(avfmae.released_state_dict(model), path)
        path.write_bytes(path.read_bytes()[:20_000])
    elif kind == "code":
        torch.save({"model": Evil()}, path)
    elif kind == "no tensors":
        torch.save({"model": {"a": 1}}, path)
    elif kind != "missing":
        path.write_bytes({"empty": b"", "text": b"hello\n", "bad safetensors": b"\xff" * 100}[kind])
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        avfmae.load_released(model, path)
    assert str(path) in str(caught.value) and "must not run" not in capsys.readouterr().out


def test_another_size_is_named():
    state = avfmae.released_state_dict(avfmae.AVFMAEForPretraining(TINY))
    with pytest.raises(
        ValueError,
        match=r"is \(64, 3, 2, 16, 16\), expected \(128, 3, 2, 16, 16\)|is .* expected .*: another model size",
    ):
        avfmae.load_released(avfmae.AVFMAEForPretraining(TINY.replace(width=128, heads=2)), state)


def test_half_a_model_is_refused():
    state = {
        n: t
        for n, t in avfmae.released_state_dict(avfmae.AVFMAEForPretraining(TINY)).items()
        if not n.startswith("encoder_fusion")
    }
    with pytest.raises(ValueError, match=r"lacks .* encoder_fusion"):
        avfmae.load_released(avfmae.AVFMAEForFinetuning(TINY, 2), state)
