"""What small data sets are trained with: frozen encoders, linear probes, low-rank updates, label smoothing by data set."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file

import avfmae
from avfmae.checkpoints import released_state_dict
from avfmae.data.clip import Clip
from avfmae.data.config import DataConfig
from avfmae.datasets.drawn import EMOTIONS, DemoSet, make_demo_set
from avfmae.inference.finetuned import load_finetuned
from avfmae.models.finetuning import AVFMAEForFinetuning
from avfmae.models.lora import add_low_rank, freeze, merged_state
from avfmae.stages.config import FinetuneConfig
from avfmae.stages.finetune import finetune
from avfmae.stages.psi import Hybrid, LabelMap
from avfmae.training.config import OptimConfig
from avfmae.training.step import TrainingStep

TINY = avfmae.ModelConfig.preset("tiny")
VIDEO = TINY.replace(modalities=("video",))


def model():
    torch.manual_seed(0)
    return AVFMAEForFinetuning(TINY, 3).eval()


def inputs():
    torch.manual_seed(1)
    audio = TINY.audio.size
    return torch.randint(0, 255, (2, *TINY.video.size, 3), dtype=torch.uint8), torch.randn(2, 1, *audio)


def changed(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize(("frozen", "trained"), [("none", "all"), ("encoders", "fusion"), ("all", "head")])
def test_frozen_parts_have_no_gradient(frozen, trained):
    net = model()
    freeze(net, frozen)
    names = {name for name, p in net.named_parameters() if p.requires_grad}
    assert {"head.weight", "head_norm.weight"} <= names
    assert any(n.startswith("video_encoder") for n in names) == (trained == "all")
    assert any(n.startswith("fusion") for n in names) == (trained in ("all", "fusion"))


def test_low_rank_updates_begin_at_the_weights_and_are_merged_into_them():
    plain, net = model(), model()
    add_low_rank(net, rank=2, alpha=4.0)
    with torch.no_grad():
        assert torch.equal(plain(*inputs()).logits, net(*inputs()).logits)
        for name, p in net.named_parameters():
            if name.endswith(".up"):
                p.normal_(std=0.1)
        expected = net(*inputs()).logits
        assert not torch.allclose(plain(*inputs()).logits, expected, atol=1e-4)
        plain.load_state_dict(merged_state(net))
        assert torch.equal(plain(*inputs()).logits, expected)
    assert released_state_dict(plain).keys() == released_state_dict(net).keys()
    trained = sum(p.numel() for p in net.parameters() if p.requires_grad)
    assert trained < 0.25 * sum(p.numel() for p in plain.parameters())
    with pytest.raises(ValueError, match="lora: got the rank 65, expected at most 64, the model's width"):
        add_low_rank(model(), 65, 1.0)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_step_changes_updates_and_head_alone(precision):
    net = model()
    add_low_rank(net, 2, 4.0)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    step = TrainingStep(net, lambda forward, batch: (forward(*batch).logits.float().square().mean(), {}), OptimConfig(), 2, 1,
                        precision=precision)  # fmt: skip
    step.rates.fill_(1e-2)
    step([inputs()])
    names = changed(before, dict(net.named_parameters()))
    learnt = ("head", "video_layer_weights", "audio_layer_weights")
    assert any(n.endswith(".up") for n in names)
    assert all(n.startswith(learnt) or n.endswith((".up", ".down")) for n in names)


@pytest.mark.slow
def test_low_rank_updates_are_trained_resumed_and_written(tmp_path):
    manifest = make_demo_set(tmp_path, DemoSet("faces", first=7, people=2, labels={e: e for e in EMOTIONS}), test_people=1)

    def run(out, **changes):
        return FinetuneConfig(
            manifest=manifest, out=tmp_path / out, preset="tiny", model=VIDEO, val_share=0.0, lora=2,
            data=DataConfig(workers=0, segments=1, crops=1), optim=OptimConfig(lr=1e-1, epochs=2, total_batch=6), **changes,
        )  # fmt: skip

    whole = finetune(run("whole"))
    assert finetune(run("parts", stop_after=1)) == {}
    assert finetune(run("parts")) == whole
    a, b = (load_file(tmp_path / out / "weights.safetensors") for out in ("whole", "parts"))
    assert a.keys() == b.keys() and not changed(a, b) and not any("parametrizations" in name for name in a)
    tuned = load_finetuned(tmp_path / "whole" / "weights.safetensors")
    assert tuned.task.outputs == 6 and type(tuned.model) is AVFMAEForFinetuning


def test_label_smoothing_by_data_set(tmp_path):
    (tmp_path / "map.toml").write_text('classes = ["a", "b"]\n[map.x]\np = "a"\n[map.y]\nq = "b"\n[smoothing]\nx = 0.4\n')
    label_map = LabelMap.read(tmp_path / "map.toml")
    task = Hybrid(label_map.classes, tuple(label_map.smoothing.items()))
    clips = [Clip(0, "0.mp4", label="a", dataset="x"), Clip(1, "1.mp4", label="b", dataset="y")]
    targets = task.targets(torch.tensor([task.target(c) for c in clips]), 0.1)
    assert torch.allclose(targets, torch.tensor([[0.8, 0.2], [0.05, 0.95]]))
    (tmp_path / "map.toml").write_text('classes = ["a"]\n[map.x]\np = "a"\n[smoothing]\nz = 0.4\n')
    with pytest.raises(ValueError, match=r"\[smoothing\] z = 0.4, expected a share below 1"):
        LabelMap.read(tmp_path / "map.toml")
    assert dataclasses.replace(task, smoothing=()).targets(torch.tensor([[1.0, -1.0]]), 0.0).tolist() == [[0.0, 1.0]]
