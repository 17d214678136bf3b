"""Tasks: targets, metrics and tables; and one that a file of its own adds, from the command line to the predictions."""

import csv
import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from toys.toy_task import Ordinal

from avfmae.cli import main
from avfmae.data.clip import Clip
from avfmae.data.manifest import read_manifest, write_manifest
from avfmae.datasets.drawn import EMOTIONS, DemoSet, make_demo_set
from avfmae.tasks import make_task, predictions
from avfmae.tasks.blended import parts
from avfmae.tasks.classification import Classification
from avfmae.tasks.regression import Regression
from avfmae.tasks.results import chosen_epochs, result_tables, summarise


def clips(*labels):
    return [Clip(i, f"{i}.mp4", label=label) for i, label in enumerate(labels)]


def test_class_targets_are_smoothed():
    targets = Classification(("a", "b", "c", "d")).targets(torch.tensor([1, 3]), 0.2)
    assert torch.allclose(targets, torch.tensor([[0.05, 0.85, 0.05, 0.05], [0.05, 0.05, 0.05, 0.85]]))


def test_classes_are_sorted_as_numbers_where_they_are():
    assert make_task("classification", clips("10", "9", "10"), "m.csv").classes == ("9", "10")
    assert make_task("classification", clips("10", "9", "x"), "m.csv").classes == ("10", "9", "x")


def test_recall_of_every_class_is_reported():
    task = Classification(("a", "b", "none"))
    first = task.metrics(clips("a", "a", "b"), np.eye(3)[[0, 1, 1]])
    assert first["recall"] == {"a": 0.5, "b": 1.0, "none": None} and first["UAR"] == 0.75
    second = task.metrics(clips("a", "b"), np.eye(3)[[0, 0]])
    history = [{"epoch": 0, "test": first}, {"epoch": 1, "test": second}]
    folds = {"fold 0": chosen_epochs(task, history[:1], "UAR"), "fold 1": chosen_epochs(task, history, "UAR")}
    summary = summarise(task, folds)
    assert summary["last"]["pooled"]["recall"] == {"a": pytest.approx(2 / 3), "b": 0.5, "none": None}
    tables = result_tables({"task": task.name, "classes": task.classes, "folds": folds, "summary": summary})
    assert list(tables) == ["Results, mean ± standard deviation over folds, in %", "Recall of each class, in %"]
    rows = tables["Recall of each class, in %"]
    assert rows[0] == {"class": "a", "clips": "3", "last epoch": "66.7", "best on test (legacy)": "50.0"}
    assert rows[2] == {"class": "none", "clips": "0", "last epoch": "none", "best on test (legacy)": "none"}


def test_the_smallest_error_is_the_best():
    history = [{"epoch": i, "test": {"MSE": m, "CCC": c}} for i, (m, c) in enumerate([(2.0, 0.1), (1.0, 0.2), (3.0, 0.3)])]
    assert chosen_epochs(Regression(1), history, "MSE")["best_on_test_legacy"]["epoch"] == 1
    assert chosen_epochs(Regression(1), history, "CCC")["best_on_test_legacy"]["epoch"] == 2
    broken = [{"epoch": 0, "test": dict.fromkeys(history[0]["test"], float("nan"))}, *history]
    for metric, epoch in (("MSE", 1), ("CCC", 2)):
        assert chosen_epochs(Regression(1), broken, metric)["best_on_test_legacy"]["epoch"] == epoch
    with pytest.raises(ValueError, match="select: got 'UAR', expected one of MSE, CCC"):
        chosen_epochs(Regression(1), history, "UAR")


@pytest.mark.parametrize(
    ("task", "labels", "classes", "words"),
    [
        ("ranking", ["1"], (), "task: got 'ranking', expected one of classification, regression, soft, multilabel"),
        ("classification", ["a", "b"], ("a",), "m.csv, row 2: label 'b' is none of the classes a"),
        ("regression", ["0.5 1", "0.5"], (), "m.csv, row 2: label '0.5' has 1 numbers, expected 2"),
        ("regression", ["a"], (), "m.csv: label 'a' is no list of numbers, which regression needs"),
        ("regression", ["1"], ("a", "b"), "m.csv: classes: got a, b, expected names of the 1 numbers that each label has"),
    ],
    ids=["task", "class", "width", "number", "classes"],
)
def test_wrong_labels_are_named(task, labels, classes, words):
    with pytest.raises(ValueError) as caught:
        make_task(task, clips(*labels), "m.csv", classes)
    assert words in str(caught.value)


def test_a_task_without_classes_cannot_balance_them():
    with pytest.raises(ValueError, match="class_balanced: got True, but the task 'regression' has no classes"):
        Regression(1).sampling_weights(clips("1"))


def test_toy_task_is_fine_tuned_and_evaluated(tmp_path, capsys):
    """From labels to predictions; the weights' file brings the task back."""
    assert pickle.loads(pickle.dumps(Ordinal(("a", "b")))) == Ordinal(("a", "b"))  # as loaders send it to workers
    drawn = make_demo_set(tmp_path, DemoSet("faces", first=7, people=3, labels={e: e for e in EMOTIONS}), test_people=1)
    ranked = [replace(c, label=("low", "middle", "top")[c.id % 3]) for c in read_manifest(drawn)]
    write_manifest(tmp_path / "ranked.csv", ranked)
    main(["finetune", "--preset", "tiny", "--manifest", str(tmp_path / "ranked.csv"), "--out", str(tmp_path / "run"),
          "--task", "ordinal", "--classes", "low", "middle", "top", "--val-share", "0", "--data.workers", "0", "--data.segments",
          "1", "--data.crops", "1", "--optim.epochs", "1", "--optim.total-batch", "6"])  # fmt: skip
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (results["task"], results["select"]) == ("ordinal", "MAE") and results["ranks"] == ["low", "middle", "top"]
    assert set(results["folds"]["split"]) == {"last", "best_on_test_legacy"} and "MAE" in results["summary"]["last"]
    assert "MAE" in (tmp_path / "run" / "report.html").read_text() and "MAE" in capsys.readouterr().out
    write_manifest(tmp_path / "two.csv", ranked[:2])
    main(["evaluate", str(tmp_path / "run" / "weights.safetensors"), str(tmp_path / "two.csv"), "--out", str(tmp_path / "p.csv"),
          "--segments", "1", "--crops", "1", "--workers", "0"])  # fmt: skip
    with open(tmp_path / "p.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 and {row["rank"] for row in rows} <= {"low", "middle", "top"}
    assert "MAE" in capsys.readouterr().err


def test_blended_labels():
    soft = make_task("soft", clips("anger 0.75, fear 0.25", "fear", "anger+joy", "anger: 3 | fear: 1"), "m.csv")
    assert soft.classes == ("anger", "fear", "joy")
    targets = [soft.target(c) for c in clips("anger 0.75, fear 0.25", "fear", "joy+anger", "anger: 3 | fear: 1")]
    assert targets == [[0.75, 0.25, 0], [0, 1, 0], [0.5, 0, 0.5], [0.75, 0.25, 0]]
    assert torch.allclose(soft.targets(torch.tensor(targets[:1]), 0.3), torch.tensor([[0.625, 0.275, 0.1]]))
    exact = soft.metrics(clips("anger 0.75, fear 0.25", "joy"), np.log([[0.75, 0.25, 1e-9], [1e-9, 1e-9, 1]]))
    assert exact["overlap"] == pytest.approx(1, abs=1e-6) and exact["WAR"] == 1
    with pytest.raises(ValueError, match=r"m.csv, row 2: label 'grief 0.5': 'grief' is none of the classes anger, joy"):
        make_task("soft", clips("anger", "grief 0.5"), "m.csv", ("anger", "joy"))
    with pytest.raises(ValueError, match=r"label '0\.5' names no classes"):
        make_task("soft", clips("0.5"), "m.csv")


def test_several_labels_a_clip():
    sklearn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    names = ("a", "b", "c", "never")
    truth, scores = rng.random((50, 4)) < 0.4, rng.normal(size=(50, 4)).round(1)  # with ties
    truth[:, 3], truth[truth.sum(1) == 0, 0] = False, True
    labels = clips(*("+".join(n for n, there in zip(names, row, strict=True) if there) for row in truth))
    task = make_task("multilabel", labels, "m.csv", names)
    got = task.metrics(labels, scores)
    expected = {
        "mAP": sklearn.average_precision_score(truth[:, :3], scores[:, :3], average="macro"),
        "UF1": sklearn.f1_score(truth[:, :3], scores[:, :3] > 0, average="macro"),
        "F1": sklearn.f1_score(truth, scores > 0, average="micro", zero_division=0),
        "exact": sklearn.accuracy_score(truth, scores > 0),
    }
    assert got == pytest.approx(expected)
    assert task.prediction(labels[0], np.array([1.0, -1, 2, -3]))["prediction"] == "a+c"


@pytest.mark.parametrize(
    ("label", "wanted"),
    [
        ("AU1+AU12", {"AU1": 1, "AU12": 1}),
        ("AU1: 2 | AU12 0.5", {"AU1": 2, "AU12": 0.5}),
        ("anger3, very sad .5; joy=1", {"anger3": 1, "very sad": 0.5, "joy": 1}),
    ],
)
def test_a_weight_stands_apart_from_its_class(label, wanted):
    assert parts(label) == wanted


def test_predictions_are_written_whatever_classes_and_files_are_called(tmp_path):
    """Classes may be numbers, of which a prediction is one by its name; a path need not be UTF-8."""
    task, held = Classification(("1", "other")), [Clip(0, "caf\udce9.mp4", label="1"), Clip(1, "b.mp4", label="other")]
    for epoch in (0, 1):
        predictions.keep(tmp_path / "test", epoch, {0: np.array([2.0, 0]), 1: np.array([epoch, 1.5])})
    for kind, epoch in (("last", 1), ("best", 0)):
        rows = predictions.read(predictions.write(task, tmp_path / "test", held, "fold 0", {kind: {"epoch": epoch}}))
        assert [(row["path"], row["prediction"], row["epoch"]) for row in rows] == [
            (r"caf\udce9.mp4", "1", epoch), ("b.mp4", "other", epoch),
        ]  # fmt: skip
        assert 0.8 < rows[0]["1"] < 0.9
