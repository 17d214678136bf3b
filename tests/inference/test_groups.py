"""Metrics of groups of clips: those of the group's clips alone, with counts, intervals and the largest gap."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

import avfmae
from avfmae.checkpoints import save_weights
from avfmae.cli import main
from avfmae.data.clip import Clip
from avfmae.data.manifest import read_columns
from avfmae.options import EvaluateConfig
from avfmae.tasks.classification import Classification
from avfmae.tasks.groups import largest_gaps, metrics_of_groups
from avfmae.tasks.regression import Regression

TASK = Classification(("a", "b"))


def clips_of(labels):
    return [Clip(i, f"{i}.mp4", label=label, subject=str(i)) for i, label in enumerate(labels)]


def test_a_planted_gap_is_found():
    """Of the clips of women nine in ten are right, of those of men half."""
    labels = ["a", "b"] * 20
    sexes = ["female"] * 20 + ["male"] * 20
    right = np.array([i % 10 != 0 for i in range(20)] + [i % 4 < 2 for i in range(20)])
    truth = np.array([label == "b" for label in labels])
    outputs = np.eye(2)[(truth == right).astype(int)]
    groups = metrics_of_groups(TASK, clips_of(labels), outputs, sexes)
    assert [(g["group"], g["clips"]) for g in groups] == [("female", 20), ("male", 20)]
    assert [g["metrics"]["WAR"] for g in groups] == pytest.approx([0.9, 0.5])
    for group in groups:
        low, high = group["interval"]["WAR"]
        assert low < group["metrics"]["WAR"] < high
    gaps = largest_gaps(groups)
    assert gaps["WAR"] == {"gap": pytest.approx(0.4), "lowest": "male", "highest": "female"}


def test_clips_without_a_group_are_one_and_make_no_gap():
    outputs = np.eye(2)[[0, 1, 0, 0]]
    groups = metrics_of_groups(TASK, clips_of("abab"), outputs, ["x", "x", None, None])
    assert [g["group"] for g in groups] == ["x", None] and [g["metrics"]["UAR"] for g in groups] == [1.0, 0.5]
    assert largest_gaps(groups) == {}


def test_of_few_people_no_interval_is_given():
    """Ten clips of one person would have one of no width."""
    clips = [Clip(i, f"{i}.mp4", label="a", subject="one" if i < 10 else str(i)) for i in range(20)]
    few, many = metrics_of_groups(TASK, clips, np.eye(2)[[0, 1] * 10], ["few"] * 10 + ["many"] * 10)
    assert (few["people"], few["interval"]["WAR"]) == (1, (None, None))
    assert many["people"] == 10 and None not in many["interval"]["WAR"]


def test_a_group_without_a_class_says_so():
    groups = metrics_of_groups(TASK, clips_of("aab"), np.eye(2)[[0, 0, 1]], ["x", "x", "y"])
    assert [g["without_clips"] for g in groups] == [["b"], ["a"]]


def test_regression_has_groups_too():
    truth = np.linspace(0, 1, 20)
    outputs = np.where(np.arange(20) < 10, truth, 1 - truth)[:, None]
    groups = metrics_of_groups(Regression(1), clips_of([str(v) for v in truth]), outputs, ["x"] * 10 + ["y"] * 10)
    assert groups[0]["metrics"]["CCC"] == pytest.approx(1) and groups[1]["metrics"]["CCC"] < 0
    assert largest_gaps(groups)["CCC"]["lowest"] == "y"


@pytest.fixture(scope="module")
def run(tmp_path_factory, media):
    """A fine-tuned model of random weights, and a manifest whose columns are separated by semicolons."""
    folder = tmp_path_factory.mktemp("groups")
    torch.manual_seed(0)
    model = avfmae.AVFMAEForFinetuning(avfmae.ModelConfig.preset("demo"), 2)
    save_weights(model, folder / "weights.safetensors", classes=["a", "b"], task="classification", data={"stride": 8})
    rows = ["path;label;Sex; Age ", *(f"{media[name]};{label};{sex};{age}" for name, label, sex, age in (
        ("good_mp4", "a", "female", 31), ("short_mp4", "b", "female", 8), ("fast_mp4", "a", "male", ""),
        ("slow_mp4", "b", "male", 31), ("text_mp4", "b", "male", 31), ("empty_mp4", "a", "other", 8),
    ))]  # fmt: skip
    (folder / "m.csv").write_text("\n".join(rows), encoding="utf-8")
    return folder


@pytest.mark.slow
def test_the_command_reports_groups(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    out, report = tmp_path / "p.csv", tmp_path / "report"
    main(["evaluate", str(run / "weights.safetensors"), str(run / "m.csv"), "--by", "Sex", "Age", "--workers", "0",
          "--out", str(out), "--report", str(report)])  # fmt: skip
    said = " ".join(capsys.readouterr().err.split())  # however wide the terminal is
    assert "by Sex" in said and "largest" in said and "Sex other: none of its clips can be read" in said
    with open(out) as file:
        predicted = list(csv.DictReader(file))
    sexes, ages = json.loads((report / "groups.json").read_text())
    assert [(g["group"], g["clips"], g["unread"]) for g in sexes["groups"]] == [("female", 2, 0), ("male", 2, 1)]
    assert [(g["group"], g["clips"]) for g in ages["groups"]] == [("31", 2), ("8", 1), (None, 1)]
    for k, group in enumerate(sexes["groups"]):
        rows = predicted[2 * k : 2 * k + 2]
        assert group["metrics"]["WAR"] == np.mean([row["prediction"] == row["label"] for row in rows])
    with open(report / "groups.csv") as file:
        assert {row["column"] for row in csv.DictReader(file)} == {"Sex", "Age"}
    with Image.open(report / "groups-Sex.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 5 and (report / "groups-Age.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["m.csv", "--by", "sex"], "column 'sex' is missing; it has path, label, Sex, Age"),
        (["video.mp4", "--by", "Sex"], "by: got 'Sex', but the clips are videos"),
    ],
    ids=["missing-column", "videos"],
)
def test_what_cannot_be_grouped_is_named(arguments, words, run, monkeypatch):
    monkeypatch.chdir(run)
    with pytest.raises(SystemExit, match=words):
        main(["evaluate", "weights.safetensors", *arguments, "--workers", "0"])


def test_a_report_needs_groups(run):
    with pytest.raises(ValueError, match="report: is of groups of clips"):
        EvaluateConfig(run / "weights.safetensors", (run / "m.csv",), report=run)


def test_any_column_is_read(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet

    pyarrow.parquet.write_table(pa.table({"path": ["a", "b"], "age": [3, None], "of": ["x", " nan"]}), tmp_path / "m.parquet")
    (tmp_path / "m.csv").write_text('of , path,age\n"x, y",a,3\n,b,\n')
    (tmp_path / "list.txt").write_text("a.mp4 0\n")
    assert read_columns(tmp_path / "m.parquet", ["age", "of"]) == {"age": ["3", None], "of": ["x", None]}
    assert read_columns(tmp_path / "m.csv", ["of", "age"]) == {"of": ["x, y", None], "age": ["3", None]}
    with pytest.raises(ValueError, match=r"list.txt: is a list without columns, expected one named 'age'"):
        read_columns(tmp_path / "list.txt", ["age"])
