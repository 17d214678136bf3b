"""The trainer: exact resumption, processes that equal one, steps that are not finite, groups and schedules."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import avfmae
from avfmae.cli import main
from avfmae.data.batch import Batch
from avfmae.data.clip import Clip
from avfmae.data.config import DataConfig
from avfmae.data.manifest import read_manifest, write_manifest
from avfmae.data.prepare import PrepareConfig, prepare
from avfmae.stages.config import FinetuneConfig, HeldOut, PretrainConfig, PSIConfig
from avfmae.stages.finetune import finetune
from avfmae.stages.leaks import leaks
from avfmae.stages.pretrain import pretrain
from avfmae.stages.psi import LabelMap, psi
from avfmae.stages.splits import fold_of, make_splits
from avfmae.tasks.mixing import mix
from avfmae.training.config import OptimConfig
from avfmae.training.optim import learning_rate, parameter_groups
from avfmae.training.runlog import read_log

pytestmark = pytest.mark.slow  # trains, mostly in runs of their own

TINY = avfmae.ModelConfig.preset("tiny")
DATA = DataConfig(workers=0, segments=1, crops=1)


def pretraining(manifest, out, **changes):
    optim = OptimConfig(lr=1e-2, epochs=2, warmup_epochs=0.5, total_batch=6, micro_batch=changes.pop("micro_batch", 3))
    run = {"precision": "float32", "save_steps": 2, "log_steps": 1} | changes
    return PretrainConfig(preset="tiny", manifest=manifest, out=out, data=DATA, optim=optim, **run)


def losses(out):
    return [(line["step"], line["loss"], line["grad_norm"]) for line in read_log(Path(out) / "log.jsonl") if "loss" in line]


def test_a_stopped_run_continues_with_the_same_losses_and_averages(drawn, tmp_path):
    def run(out, **changes):
        config = pretraining(drawn, tmp_path / out, **changes)
        config.optim.ema = 0.8
        pretrain(config)

    run("whole")
    run("parts", stop_after=3)
    run("parts")
    whole, parts = losses(tmp_path / "whole"), losses(tmp_path / "parts")
    assert len(whole) == 6 and whole == parts
    last, averaged = "weights.safetensors", "weights-averaged.safetensors"
    for name in (last, averaged):
        a, b = (load_file(tmp_path / out / name) for out in ("whole", "parts"))
        assert a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a), name
    head = "decoder.head.weight"
    assert not torch.equal(*(load_file(tmp_path / "whole" / name)[head] for name in (last, averaged)))
    assert (tmp_path / "whole" / "report.html").exists()


def test_a_killed_run_continues_with_the_same_losses(drawn, tmp_path):
    """SIGKILL between checkpoints, at no chosen moment."""
    killed, whole = tmp_path / "killed", tmp_path / "whole"

    def command(out):
        settings = (
            "--preset tiny --save-steps 2 --log-steps 1 --data.workers 1 --optim.total-batch 6"
            " --optim.micro-batch 3 --optim.epochs 4 --optim.warmup-epochs 1 --optim.lr 0.01"
        )
        return ["pretrain", "--manifest", str(drawn), "--out", str(out), *settings.split()]

    process = subprocess.Popen(
        [sys.executable, "-m", "avfmae", *command(killed)], stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while len(read_log(killed / "log.jsonl")) < 5:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert 0 < len(losses(killed)) < 12
    for out in (killed, whole):
        main(command(out))
    assert len(losses(whole)) == 12 and losses(killed) == losses(whole)
    assert not list((killed / "checkpoints").glob(".writing-*"))


def test_a_run_of_another_kind_is_not_continued(drawn, tmp_path):
    pretrain(pretraining(drawn, tmp_path, stop_after=2))
    with pytest.raises(ValueError, match="belongs to a run with another seed"):
        pretrain(pretraining(drawn, tmp_path, seed=1))


def test_a_corrupt_checkpoint_is_named(drawn, tmp_path):
    pretrain(pretraining(drawn, tmp_path, stop_after=2))
    state = tmp_path / "checkpoints" / "step-00000002" / "state.pt"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"state\.pt: is no readable checkpoint"):
        pretrain(pretraining(drawn, tmp_path))


def test_steps_that_are_not_finite_are_skipped_and_in_a_row_they_stop_the_run(drawn, tmp_path):
    from avfmae.stages import pretrain as stage

    honest, poisoned = stage.pretraining_loss, {1}

    calls = []

    def sometimes_infinite(model, batch):
        loss, parts = honest(model, batch)
        calls.append(None)
        return (loss * float("nan") if (len(calls) - 1) // 2 in poisoned else loss), parts

    stage.pretraining_loss = sometimes_infinite
    try:
        pretrain(pretraining(drawn, tmp_path / "once"))
        lines = [line for line in read_log(tmp_path / "once" / "log.jsonl") if "loss" in line]
        assert (
            [line["skipped"] for line in lines] == [0, 1, 1, 1, 1, 1]
            and np.isnan(lines[1]["loss"])
            and np.isfinite(lines[2]["loss"])
        )
        poisoned |= {2, 3, 4, 5}
        calls.clear()
        run = pretraining(drawn, tmp_path / "often")
        run.optim.max_skipped = 3
        with pytest.raises(RuntimeError, match="3 steps in a row were not finite"):
            pretrain(run)
    finally:
        stage.pretraining_loss = honest


def test_bad_clips_go_to_quarantine_and_too_many_stop_the_run(drawn, tmp_path):
    clips = read_manifest(drawn)
    (tmp_path / "broken.mp4").write_bytes(b"nothing")
    from dataclasses import replace

    write_manifest(tmp_path / "m.csv", [*clips, replace(clips[0], path=str(tmp_path / "broken.mp4"))])
    run = pretraining(tmp_path / "m.csv", tmp_path / "run")
    run.data = DataConfig(workers=0, max_bad_share=0.1)
    pretrain(run)
    listed = (tmp_path / "run" / "quarantine.csv").read_text()
    assert "broken.mp4" in listed and "no readable media file" in listed
    assert [line["bad_clips"] for line in read_log(tmp_path / "run" / "log.jsonl") if "loss" in line][-1] == 1
    assert "broken.mp4" in (tmp_path / "run" / "report.html").read_text()
    run = pretraining(tmp_path / "m.csv", tmp_path / "strict")
    run.data = DataConfig(workers=0, max_bad_share=0.01)
    with pytest.raises(RuntimeError, match=r"1 of 19 clips are bad, more than max_bad_share = 0\.01"):
        pretrain(run)


def test_layer_decay_and_weight_decay_follow_the_recipe():
    cfg = TINY  # 4 blocks, 2 fusion units: layers 0 to 7
    model = avfmae.AVFMAEForFinetuning(cfg, 3)
    groups = parameter_groups(model, OptimConfig(layer_decay=0.5, weight_decay=0.05))
    scale = {n: g["lr_scale"] for g in groups for n in g["names"]}
    decay = {n: g["weight_decay"] for g in groups for n in g["names"]}
    assert scale["video_encoder.embed.proj.weight"] == scale["audio_encoder.region_tokens"] == 0.5**7
    assert scale["video_encoder.blocks.0.mlp.fc1.weight"] == 0.5**6 and scale["audio_encoder.blocks.3.mlp.fc1.bias"] == 0.5**3
    assert scale["fusion.video_units.0.norm.weight"] == 0.5**2 and scale["fusion.audio_units.1.self_gate.weight"] == 0.5
    assert scale["head.weight"] == scale["fusion.refinement.proj.weight"] == scale["video_encoder.norm.weight"] == 1
    assert (
        decay["head.weight"] == 0.05
        and decay["head.bias"] == decay["video_encoder.region_tokens"] == decay["fusion.video_units.0.norm.weight"] == 0
    )
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))


def test_learning_rate_warms_up_then_follows_a_cosine():
    optim = OptimConfig(lr=1.0, min_lr=0.1, warmup_lr=0.01, epochs=10, warmup_epochs=2, total_batch=128)
    rates = [learning_rate(s, 5, optim) for s in range(50)]
    assert rates[0] == pytest.approx(0.005) and rates[10] == pytest.approx(0.5) and rates[49] == pytest.approx(0.05)
    assert (np.diff(rates[:11]) > 0).all() and (np.diff(rates[10:]) < 0).all()


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0), (0, 1.0)], ids=["mixup", "cutmix"])
def test_mixing_blends_picture_sound_and_label_alike(mixup, cutmix):
    video = torch.stack([torch.full((2, 32, 32, 3), v, dtype=torch.uint8) for v in (0, 200)])
    audio = torch.stack([torch.full((1, 256, 8), v) for v in (0.0, 1.0)])
    targets = torch.eye(2)
    batch = Batch(video, audio, torch.arange(2), None, [0, 1])
    seen = set()
    for seed in range(20):
        mixed, blended = mix(batch, targets, np.random.default_rng(seed), mixup, cutmix, 0.5)
        share = float(blended[1, 1])  # what clip 1 kept of itself
        assert torch.allclose(blended.sum(1), torch.ones(2)) and torch.allclose(blended, blended.flip(0).flip(1))
        assert mixed.video.dtype == torch.uint8
        assert abs(mixed.video[1].float().mean() / 200 - share) < 0.01 and abs(float(mixed.audio[1].mean()) - share) < 0.01
        seen.add(round(share, 2))
    assert len(seen) > 10
    assert torch.equal(batch.video[1].unique(), torch.tensor([200], dtype=torch.uint8))  # the given batch is untouched


def supervised(drawn, out, **changes):
    optim = OptimConfig(lr=5e-3, epochs=changes.pop("epochs", 2), warmup_epochs=0, total_batch=6)
    return {"preset": "tiny", "out": out, "data": DATA, "optim": optim} | changes


def test_finetuning_reports_three_numbers(drawn, tmp_path):
    results = finetune(FinetuneConfig(manifest=drawn, **supervised(drawn, tmp_path)))
    fold = results["folds"]["split"]
    assert set(fold) == {"last", "best_on_held_out", "best_on_test_legacy"}
    assert fold["best_on_test_legacy"]["UAR"] >= fold["last"]["UAR"] and 0 <= fold["last"]["WAR"] <= 1
    assert np.sum(fold["last"]["confusion"]) == 6
    assert json.loads((tmp_path / "results.json").read_text())["summary"]["last"]["UAR"]["mean"] == fold["last"]["UAR"]
    page = (tmp_path / "report.html").read_text()
    assert "best on test (legacy)" in page and "last epoch" in page


def test_folds_never_share_a_subject(drawn, tmp_path):
    clips = read_manifest(drawn)
    fold = fold_of(clips, "loso")
    assert len(set(fold.values())) == 3
    for split in make_splits(clips, FinetuneConfig(folds="loso", val_share=0.5)):
        people = [{c.subject for c in part} for part in (split.train, split.val, split.test)]
        assert not people[0] & people[1] and not people[0] & people[2] and not people[1] & people[2] and all(people)
    results = finetune(FinetuneConfig(manifest=drawn, folds=3, **supervised(drawn, tmp_path, epochs=1)))
    assert len(results["folds"]) == 3 and np.sum(results["summary"]["last"]["pooled"]["confusion"]) == 18
    with pytest.raises(ValueError, match="folds: got 4, expected 2 to 3"):
        fold_of(clips, 4)


@pytest.mark.parametrize(
    ("first", "people", "folds", "sizes"),
    [(1001, 91, 5, [18, 18, 18, 18, 19]), (1, 24, 6, [4] * 6), (1, 11, 4, [2, 3, 3, 3])],
    ids=["CREMA-D", "RAVDESS", "uneven"],
)
def test_folds_are_the_published_ones(first, people, folds, sizes):
    clips = [Clip(i, f"{i}.mp4", subject=str(first + i)) for i in range(people)]
    fold = fold_of(clips, folds)
    assert [fold[i] for i in range(people)] == [k for k, size in enumerate(sizes) for _ in range(size)]


@pytest.mark.parametrize("modalities", [("video",), ("audio",)], ids=str)
def test_regression_with_one_modality(drawn, tmp_path, modalities):
    from dataclasses import replace

    rng = np.random.default_rng(0)
    write_manifest(tmp_path / "m.csv", [replace(c, label=f"{rng.normal():.3f} {rng.normal():.3f}") for c in read_manifest(drawn)])
    run = FinetuneConfig(
        manifest=tmp_path / "m.csv",
        task="regression",
        **supervised(drawn, tmp_path / "run", epochs=1),
        model=avfmae.ModelConfig.preset("tiny").replace(modalities=modalities),
    )
    results = finetune(run)
    assert {"PCC", "CCC", "MSE", "PCC_0", "CCC_1"} <= set(results["folds"]["split"]["last"]) and results["select"] == "CCC"


LABEL_MAP = """
classes = ["good", "bad"]
[map.faces]
content = "good"
joyful = "good"
sad = "bad"
angry = "bad"
surprised = ""
afraid = "bad"
"""


def semantics(drawn, tmp_path, held_out, label_map=LABEL_MAP):
    (tmp_path / "map.toml").write_text(label_map)
    return PSIConfig(
        manifests=(drawn,), label_map=tmp_path / "map.toml", held_out=held_out, **supervised(drawn, tmp_path / "psi", epochs=1)
    )


def test_psi_refuses_what_the_target_holds_out(drawn, tmp_path):
    with pytest.raises(ValueError, match="held_out: 5 of 15 clips belong to the target's evaluation"):
        psi(semantics(drawn, tmp_path, HeldOut(drawn)))
    with pytest.raises(ValueError, match="held_out: 5 of 15"):
        psi(semantics(drawn, tmp_path, HeldOut(drawn, folds=3, fold=2)))
    # a copy under another name, of nobody known
    import shutil
    from dataclasses import replace

    clips = read_manifest(drawn)
    shutil.copy(clips[-1].path, tmp_path / "copy.mp4")
    write_manifest(tmp_path / "copies.csv", [replace(clips[0], path=str(tmp_path / "copy.mp4"), subject=None)])
    with pytest.raises(ValueError, match="is a copy of a held-out clip"):
        psi(semantics(tmp_path / "copies.csv", tmp_path, HeldOut(drawn)))


def test_prepared_clips_are_known_by_the_files_they_were_made_of(drawn, tmp_path):
    """Under another name, prepared or not, on either side."""
    clips = read_manifest(drawn)[:3]
    copies = []
    for clip in clips:
        copies.append(tmp_path / "copies" / f"other-{clip.id}.mp4")
        copies[-1].parent.mkdir(exist_ok=True)
        shutil.copyfile(clip.path, copies[-1])
    prepared = read_manifest(prepare(PrepareConfig(tmp_path / "copies", tmp_path / "set", detector="precropped")))
    plain = [dataclasses.replace(clip, subject=None) for clip in read_manifest(drawn)[1:6]]
    assert set(leaks(plain, prepared)) == {1, 2} and set(leaks(prepared, plain)) == {1, 2}
    assert set(leaks(prepared, prepared[:1])) == {0}


def test_psi_trains_on_what_is_left_and_fine_tuning_takes_it_up(drawn, tmp_path):
    weights = psi(semantics(drawn, tmp_path, HeldOut(drawn, on_leak="exclude")))
    lines = [line for line in read_log(tmp_path / "psi" / "log.jsonl") if "loss" in line]
    assert len(lines) == 10 // 6 and json.loads((tmp_path / "psi" / "classes.json").read_text()) == ["good", "bad"]
    results = finetune(FinetuneConfig(manifest=drawn, init=weights, **supervised(drawn, tmp_path / "ft", epochs=1)))
    assert results["classes"][0] == "afraid"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("classes = []\n", "needs 'classes'"),
        ('classes = ["a"]\n[map.x]\ny = "b"\n', "none of the classes"),
        ("class = 1", "unknown key 'class'"),
        ("=", "is no TOML"),
    ],
    ids=["empty", "class", "key", "toml"],
)
def test_bad_label_maps_are_named(text, words, tmp_path):
    (tmp_path / "m.toml").write_text(text)
    with pytest.raises(ValueError, match=words) as caught:
        LabelMap.read(tmp_path / "m.toml")
    assert "m.toml" in str(caught.value)


def test_labels_that_the_map_lacks_are_named(drawn, tmp_path):
    with pytest.raises(ValueError, match=r"row 1: label 'content' is not in \[map.faces\]"):
        psi(semantics(drawn, tmp_path, HeldOut(), LABEL_MAP.replace("content", "contented")))
    with pytest.raises(ValueError, match=r"data set 'faces' has no \[map.faces\]"):
        psi(semantics(drawn, tmp_path, HeldOut(), LABEL_MAP.replace("map.faces", "map.masks")))
