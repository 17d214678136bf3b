"""What a continued run is compared by, and checkpoints that are there whole at every moment."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from processes import PROGRAMS
from safetensors.torch import load_file, save_file

from avfmae.checkpoints import state
from avfmae.checkpoints.state import TrainingState, checkpoints, load_checkpoint, save_checkpoint
from avfmae.data.clip import Clip
from avfmae.data.config import DataConfig
from avfmae.data.table import ClipTable
from avfmae.stages.config import FinetuneConfig, PretrainConfig
from avfmae.stages.pretrain import pretrain
from avfmae.stages.splits import Split, fold_of, hold_out
from avfmae.training.config import OptimConfig
from avfmae.training.resume import OtherRun, check_same, fingerprint
from avfmae.training.runlog import read_log


def pretraining(manifest, out, **changes):
    """A run of six steps with a checkpoint after every second one."""
    optim = OptimConfig(lr=1e-2, epochs=2, warmup_epochs=0.5, total_batch=6, micro_batch=3)
    data = DataConfig(workers=0)
    run = {"precision": "float32", "save_steps": 2, "log_steps": 1} | changes
    return PretrainConfig(preset="tiny", manifest=manifest, out=out, data=data, optim=optim, **run)


def losses(out):
    return [(line["step"], line["loss"]) for line in read_log(out / "log.jsonl") if "loss" in line]


CLIPS = [Clip(i, f"/v/{i}.mp4", label="ab"[i % 2]) for i in range(4)]


def of(clips=CLIPS, classes=("a", "b"), **changes):
    run = FinetuneConfig(preset="tiny")
    for name, value in changes.items():
        where, _, field = name.rpartition("__")
        setattr(getattr(run, where) if where else run, field, value)
    return fingerprint(run, {"test": ClipTable.of(clips)}, True, classes=classes)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"seed": 1}, "seed"),
        ({"mixup": 0.0}, "mixup"),
        ({"data__stride": 2}, "data.stride"),
        ({"optim__lr": 1.0}, "optim.lr"),
        ({"optim__micro_batch": 8}, "optim.micro_batch"),  # of the contrast's negatives, and mixup's partners
        ({"clips": [replace(CLIPS[0], label="b"), *CLIPS[1:]]}, "test labels"),
        ({"clips": [replace(CLIPS[0], path="x"), *CLIPS[1:]]}, "test clips"),
        ({"clips": CLIPS[:3]}, "test clips and test labels"),
        ({"classes": ("b", "a")}, "classes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_results_depend_on_is_named(change, names, tmp_path):
    with pytest.raises(OtherRun, match=f"another {names} .*now.*--resume-anyway"):
        check_same(tmp_path, of(), of(**change), anyway=False)
    check_same(tmp_path, of(), of(**change), anyway=True)


@pytest.mark.parametrize(
    "change", [{"optim__total_batch": 8}, {"model": FinetuneConfig(preset="base").model}], ids=["batch", "model"]
)
def test_what_does_not_fit_is_refused_anyway(change, tmp_path):
    with pytest.raises(OtherRun, match=r"choose another out$"):
        check_same(tmp_path, of(), of(**change), anyway=True)


def test_the_initial_weights_are_compared_by_their_bytes(tmp_path):
    (tmp_path / "w").write_bytes(b"1")
    before = of(init=tmp_path / "w")
    shutil.copy(tmp_path / "w", tmp_path / "moved")
    check_same(tmp_path, before, of(init=tmp_path / "moved"), anyway=False)
    (tmp_path / "w").write_bytes(b"2")
    with pytest.raises(OtherRun, match="another initial weights"):
        check_same(tmp_path, before, of(init=tmp_path / "w"), anyway=False)


def test_of_tables_what_differs_is_told(tmp_path):
    tables = {"detector": "a", "margin": 0.3}, {"detector": "b", "margin": 0.3, "size": 8}
    before, now = ({"faces": json.dumps(table)} for table in tables)
    with pytest.raises(OtherRun, match=r'\(faces.detector "a", now "b", faces.size null, now 8\)'):
        check_same(tmp_path, before, now, anyway=False)


@pytest.mark.parametrize("change", [{"data__workers": 7}, {"save_steps": 3}, {"optim__max_skipped": 2}], ids=str)
def test_what_changes_no_result_is_not_compared(change, tmp_path):
    check_same(tmp_path, of(), of(**change), anyway=False)


@pytest.fixture
def plain_weights(monkeypatch):
    """Checkpoints of a single layer, which has no released layout."""
    monkeypatch.setattr(state, "save_weights", lambda model, path, merged: save_file(model.state_dict(), path))
    monkeypatch.setattr(state, "load_released", lambda model, path: model.load_state_dict(load_file(path)))


def model_and_optimiser(value):
    model = torch.nn.Linear(2, 2)
    torch.nn.init.constant_(model.weight, value)
    return model, torch.optim.AdamW(model.parameters())


@pytest.mark.parametrize("moment", range(1, 3), ids=["before", "between"])
def test_a_step_that_is_saved_once_more_is_there_at_every_moment(moment, tmp_path, monkeypatch, plain_weights):
    """The process ends at one of the renames: the step is read as it was."""
    save_checkpoint(tmp_path, *model_and_optimiser(1.0), TrainingState(5))
    renames, replace_ = [], os.replace

    def ends(*paths):
        nonlocal renames
        renames += [paths] if "step-" in os.path.basename(paths[1]) else []
        if len(renames) == moment and paths == renames[-1]:
            raise KeyboardInterrupt
        replace_(*paths)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", ends)
        save_checkpoint(tmp_path, *model_and_optimiser(2.0), TrainingState(5))
    (found,), (model, optimiser) = checkpoints(tmp_path), model_and_optimiser(0.0)
    assert load_checkpoint(found, model, optimiser).step == 5 and model.weight[0, 0] == 1
    save_checkpoint(tmp_path, *model_and_optimiser(3.0), TrainingState(5))
    (found,) = checkpoints(tmp_path)
    assert load_checkpoint(found, model, optimiser).step == 5 and model.weight[0, 0] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]


def test_what_cannot_be_written_is_said_and_leaves_nothing(tmp_path, monkeypatch, plain_weights):
    monkeypatch.setattr(torch, "save", lambda *_: (_ for _ in ()).throw(RuntimeError("enforce fail at inline_container.cc")))
    with pytest.raises(OSError, match=r"cannot be written, with \d+ MB free \(enforce fail"):
        save_checkpoint(tmp_path, *model_and_optimiser(1.0), TrainingState(5))
    assert not list(tmp_path.iterdir())


def test_segments_of_a_recording_stay_together():
    clips = [Clip(i, f"/v/{i % 5}.mp4", start=float(i), label="a") for i in range(40)]
    fold = fold_of(clips, 3)
    assert len(set(fold.values())) == 3 and all(fold[i] == fold[i % 5] for i in range(40))
    split = hold_out(Split("s", clips, [], clips[:1]), FinetuneConfig(preset="tiny", val_share=0.4))
    assert split.val and not {c.path for c in split.val} & {c.path for c in split.train}


@pytest.mark.slow
def test_a_damaged_checkpoint_falls_back_to_the_one_before(drawn, tmp_path, capsys):
    """The losses are those of an unbroken run; a folder that somebody has put aside is no checkpoint."""
    pretrain(pretraining(drawn, tmp_path / "whole"))
    pretrain(pretraining(drawn, tmp_path / "parts", stop_after=4))
    folder = tmp_path / "parts" / "checkpoints"
    (folder / "step-old").mkdir()
    newest = folder / "step-00000004" / "weights.safetensors"
    newest.write_bytes(newest.read_bytes()[:1000])
    capsys.readouterr()
    pretrain(pretraining(drawn, tmp_path / "parts"))
    said = "".join(capsys.readouterr().err.split())
    assert f"{newest}:isnoreadablecheckpoint" in said and "continuingfromstep-00000002" in said
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")


@pytest.mark.slow
def test_a_folder_belongs_to_one_process(drawn, tmp_path):
    """Another process that works there is named; one that was killed is no obstacle."""
    holder = subprocess.Popen([sys.executable, str(PROGRAMS / "hold_a_lock.py"), str(tmp_path / ".lock")], stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(ValueError, match=f"process {holder.pid} of .* works there"):
        pretrain(pretraining(drawn, tmp_path, stop_after=1))
    holder.kill()
    holder.wait()
    pretrain(pretraining(drawn, tmp_path, stop_after=1))
    assert len(losses(tmp_path)) == 1
