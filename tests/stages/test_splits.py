"""Splits and the metric that chooses epochs are checked before anything is trained; clips that are left out are told."""

import pytest

from avfmae.data.clip import Clip
from avfmae.data.manifest import write_manifest
from avfmae.stages.config import FinetuneConfig, HeldOut
from avfmae.stages.finetune import finetune
from avfmae.stages.psi import held_out_clips
from avfmae.stages.splits import make_splits


def clips(*splits):
    return [Clip(i, f"/v/{i}.mp4", label="ab"[i % 2], split=split, subject=str(i)) for i, split in enumerate(splits)]


def test_clips_of_other_splits_are_told(capsys):
    run = FinetuneConfig(manifest="m.csv", val_share=0)
    (split,) = make_splits(clips("train", "train", "test", "extra", "extra", None), run)
    assert [c.id for c in split.train] == [0, 1] and [c.id for c in split.test] == [2]
    said = capsys.readouterr().err
    assert "2 clips of split 'extra' are left out" in said and "1 clips without a split are left out" in said


@pytest.mark.parametrize("name", ["Train", " test", "VAL"])
def test_a_split_in_capitals_is_refused_by_row(name):
    with pytest.raises(ValueError, match=f"m.csv, row 3: split is '{name}', expected '{name.strip().lower()}'"):
        make_splits(clips("train", "test", name), FinetuneConfig(manifest="m.csv"))


def test_a_manifest_without_splits_says_so():
    with pytest.raises(ValueError, match="needs 'train' and 'test', it has none"):
        make_splits(clips(None, None), FinetuneConfig(manifest="m.csv"))


def test_somebody_is_left_to_train_on():
    with pytest.raises(ValueError, match="val_share: got 1, which leaves none of the 2 training subjects"):
        make_splits(clips("train", "train", "test"), FinetuneConfig(manifest="m.csv", val_share=1))


@pytest.mark.parametrize(("held", "message"), [
    (HeldOut(folds=2, fold=2), "held_out.fold: got 2, expected 0 to 1"),
    (HeldOut(folds=2, fold=-1), "held_out.fold: got -1, expected 0 to 1"),
    (HeldOut(), "row 3: split is 'TEST', expected 'test'"),
])  # fmt: skip
def test_held_out_clips_are_there(held, message, tmp_path):
    write_manifest(tmp_path / "m.csv", clips("train", "test", "TEST", "train"))
    held.manifest = tmp_path / "m.csv"
    with pytest.raises(ValueError, match=message):
        held_out_clips(held)


@pytest.mark.parametrize("task", ["classification", "soft", "multilabel"])
def test_an_unknown_metric_is_refused_before_training(task, tmp_path):
    write_manifest(tmp_path / "m.csv", clips("train", "train", "test", "test"))
    run = FinetuneConfig(preset="tiny", manifest=tmp_path / "m.csv", out=tmp_path / "run", task=task, select="foo")
    with pytest.raises(ValueError, match="select: got 'foo', expected one of"):
        finetune(run)
    assert not (tmp_path / "run").exists()
