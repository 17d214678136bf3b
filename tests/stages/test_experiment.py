"""An experiment: all folds and seeds, broken off and continued, on processes and on Ray; and what its page says."""

import csv
import json
import os
import queue
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from avfmae.cli import main
from avfmae.data.manifest import read_manifest, write_manifest
from avfmae.datasets import datasets
from avfmae.datasets.command import finetuning
from avfmae.datasets.drawn import EMOTIONS, DemoSet, make_demo_set
from avfmae.datasets.interface import Options
from avfmae.datasets.published import published
from avfmae.stages import experiment as module
from avfmae.stages.psi import held_out_clips
from avfmae.stages.splits import make_splits
from avfmae.tasks.classification import Classification
from avfmae.tasks.pooling import Pooled, by_dataset, interval, summarise_predictions
from avfmae.tasks.regression import Regression

SETTINGS = """
seeds = [0]
resamples = 50
[finetune]
preset = "tiny"
manifest = "{manifest}"
folds = 5
val_share = 0.3
model.modalities = ["video"]
[finetune.data]
workers = 0
segments = 1
crops = 1
[finetune.optim]
epochs = 2
total_batch = 6
"""
WRITTEN = ("report.html", "results.json", "results.csv", "results.tex")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Five people, two emotions each."""
    folder = tmp_path_factory.mktemp("drawn")
    manifest = make_demo_set(folder, DemoSet("faces", first=0, people=5, labels={e: e for e in EMOTIONS}))
    clips = [c for c in read_manifest(manifest) if c.label in ("joyful", "sad")]
    write_manifest(folder / "two.csv", [replace(c, id=i) for i, c in enumerate(clips)])
    return folder / "two.csv"


@pytest.fixture(scope="module")
def file(drawn):
    path = drawn.parent / "five.toml"
    path.write_text(SETTINGS.format(manifest=drawn))
    return path


@pytest.fixture(scope="module")
def whole(file):
    out = file.parent / "whole"
    main(["experiment", str(file), "--out", str(out)])
    return out


def written(out):
    return {name: (out / name).read_bytes() for name in WRITTEN}


@pytest.mark.slow
def test_a_killed_experiment_goes_on_and_writes_the_same(file, whole, tmp_path, monkeypatch):
    finetune, done = module.finetune, []

    def killed(run):
        done.append(run.out)
        if len(done) == 3:
            assert finetune(replace(run, stop_after=1)) == {}
            raise KeyboardInterrupt
        return finetune(run)

    monkeypatch.setattr(module, "finetune", killed)
    with pytest.raises(SystemExit, match="130"):  # as the shell knows an interruption
        main(["experiment", str(file), "--out", str(tmp_path / "parts")])
    main(["experiment", str(file), "--out", str(tmp_path / "parts")])
    assert len(done) == 3 + 3 and done[2] == done[3]  # two folds were done, and are not done again
    assert written(tmp_path / "parts") == written(whole)


@pytest.fixture
def with_psi(drawn, tmp_path):
    """PSI on the target's own clips, under two hybrid labels; and a variant without it."""
    (tmp_path / "map.toml").write_text('classes = ["good", "bad"]\n[map.faces]\njoyful = "good"\nsad = "bad"\n')
    semantics = f"""
[psi]
manifests = ["{drawn}"]
label_map = "{tmp_path / "map.toml"}"
held_out.on_leak = "exclude"
data = {{ workers = 0, segments = 1, crops = 1 }}
optim = {{ epochs = 1, total_batch = 4 }}
[variants."with PSI"]
[variants."without PSI"]
psi = false
"""
    path = tmp_path / "psi.toml"
    path.write_text(SETTINGS.format(manifest=drawn) + semantics)
    return path


def test_psi_knows_nothing_of_its_folds_test_clips(with_psi, drawn, tmp_path):
    what = module.Experiment.read(with_psi)
    runs = what.runs(with_psi)
    jobs, without = (
        module.jobs_of(name, run, (0, 1), tmp_path, "contents", what.before(name, run, with_psi), set())
        for name, run in runs.items()
    )
    assert len(jobs) == len(without) == 10 and all(job.psi is None for job in without)
    clips, people = read_manifest(drawn), set()
    for job in jobs:
        (split,) = make_splits(clips, job.run)
        held = held_out_clips(job.psi.held_out)
        assert held == split.test and job.psi.seed == job.seed and job.psi.model == job.run.model
        people |= {(job.seed, clip.subject) for clip in held}
    assert len(people) == 10
    text = with_psi.read_text().replace('held_out.on_leak = "exclude"\n', "")
    with_psi.write_text(text)
    with pytest.raises(SystemExit, match=r"\[psi\], fold 0: held_out: 2 of 10 clips belong to the target's evaluation"):
        main(["experiment", str(with_psi), "--out", str(tmp_path / "out")])


@pytest.mark.slow
def test_fine_tuning_begins_where_its_own_psi_ended(with_psi, tmp_path, monkeypatch):
    finetune, begun = module.finetune, []
    monkeypatch.setattr(module, "finetune", lambda run: begun.append(run.init) or finetune(run))
    with_psi.write_text(with_psi.read_text().replace("folds = 5", "folds = 5\nonly_fold = 3"))
    main(["experiment", str(with_psi), "--out", str(tmp_path / "out")])
    variants = json.loads((tmp_path / "out" / "results.json").read_text())["variants"]
    assert list(variants) == ["with PSI", "without PSI"]
    folder = tmp_path / "out" / "folds" / "with-PSI-seed-0-fold-3"
    assert begun == [folder / "psi" / "weights.safetensors", None]
    assert '"loss"' in (folder / "psi" / "log.jsonl").read_text() and not list(folder.glob("**/checkpoints"))
    assert json.loads((folder / "done.json").read_text())["psi"]["manifests content"]
    with_psi.write_text(with_psi.read_text().replace("epochs = 1,", "epochs = 2,"))
    with pytest.raises(SystemExit, match="holds results of another psi; choose another out"):
        main(["experiment", str(with_psi), "--out", str(tmp_path / "out")])


@pytest.mark.exhaustive
def test_an_experiment_that_was_killed_anywhere_ends_with_the_same_bytes(file, whole, tmp_path):
    """SIGKILL, at moments between the beginning of the first fold and the last."""
    command = [sys.executable, "-m", "avfmae", "experiment", str(file), "--out", str(tmp_path / "out")]
    kills = 0
    for folds in (1, 2, 3, 5):  # killed once a fold has logged a step, and then some
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(list(tmp_path.glob("out/folds/*/log.jsonl"))) < folds:
            time.sleep(0.01)
        time.sleep(0.3)
        process.kill()
        kills += process.wait() == -signal.SIGKILL
    assert kills >= 3 and not (tmp_path / "out" / "results.json").exists()
    subprocess.run(command, check=True, capture_output=True)
    assert written(tmp_path / "out") == written(whole)


@pytest.mark.slow
def test_what_is_written_agrees(whole):
    rows = pyarrow.parquet.read_table(whole / "predictions.parquet").to_pylist()
    results = json.loads((whole / "results.json").read_text())["variants"][""]
    last = [row for row in rows if row["kind"] == "last"]
    assert len(last) == 10 and {row["fold"] for row in last} == {f"fold {k}" for k in range(5)}
    for row in last:
        assert row["joyful"] + row["sad"] == pytest.approx(1, abs=1e-3) and row["prediction"] in ("joyful", "sad")
    hits = np.mean([row["prediction"] == row["label"] for row in last])
    assert results["summary"]["last"]["pooled"]["WAR"] == pytest.approx(hits)
    assert set(results["summary"]) == {"last", "best_on_held_out", "best_on_test_legacy"}
    low, high = results["summary"]["last"]["interval"]["WAR"]
    assert 0 <= low <= hits <= high <= 1
    with open(whole / "results.csv") as file:
        table = list(csv.DictReader(file))
    folds = [float(r["value"]) for r in table if (r["kind"], r["metric"]) == ("last", "WAR") and r["fold"].startswith("fold")]
    assert np.mean(folds) == pytest.approx(results["summary"]["last"]["mean"]["WAR"]) and len(folds) == 5
    page = (whole / "report.html").read_text()
    assert "best on test (legacy)" in page and "fold 4" in page and str(whole) not in page
    assert not list(whole.glob("folds/*/checkpoints"))


@pytest.mark.slow
def test_other_settings_are_refused_by_name(file, whole, tmp_path):
    other = tmp_path / "other.toml"
    other.write_text(file.read_text().replace("val_share = 0.3", "val_share = 0.5"))
    with pytest.raises(SystemExit, match="holds results of another val_share; choose another out"):
        main(["experiment", str(other), "--out", str(whole)])


@pytest.mark.exhaustive
@pytest.mark.parametrize("how", [["--jobs", "2"], ["--engine", "ray", "--jobs", "2"]], ids=["processes", "ray"])
def test_folds_at_the_same_time_give_the_same(file, whole, tmp_path, how, monkeypatch):
    if "ray" in how:
        pytest.importorskip("ray")
        monkeypatch.setenv("RAY_worker_niceness", "0")  # else its workers starve on a machine with other work
    main(["experiment", str(file), "--out", str(tmp_path / "out"), *how])
    assert written(tmp_path / "out") == written(whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: replace(c, path="1.mp4"), "1.mp4 is a held-out clip"),
        (lambda c: replace(c, path="1.mp4", start=1.0, end=2.0), "1.mp4: another segment of this recording is held out"),
        (lambda c: replace(c, path="copy.mp4"), "copy.mp4 is a copy of a held-out clip"),
        (lambda c: replace(c, path="2.mp4", subject="s1"), "2.mp4: subject s1 is held out"),
    ],
    ids=["clip", "segment", "copy", "subject"],
)
def test_a_test_clip_among_the_training_clips_is_refused(drawn, tmp_path, change, message):
    clips = [replace(c, id=i, path=f"{i}.mp4", subject=f"s{i}", split="test" if i == 1 else "train") for i, c in
             enumerate(list(read_manifest(drawn))[:4])]  # fmt: skip
    for i in range(4):
        (tmp_path / f"{i}.mp4").write_bytes(b"clip%d" % i)
    (tmp_path / "copy.mp4").write_bytes(b"clip1")
    clips[2] = change(clips[2])
    write_manifest(tmp_path / "m.csv", clips)
    settings = SETTINGS.format(manifest=tmp_path / "m.csv").replace("folds = 5\nval_share = 0.3\n", "val_share = 0.0\n")
    (tmp_path / "e.toml").write_text(settings)
    alone = ["finetune", "--preset", "tiny", "--manifest", str(tmp_path / "m.csv")]
    for command in (["experiment", str(tmp_path / "e.toml")], alone):
        with pytest.raises(SystemExit, match=rf"1 training clips are tested[\s\S]*{message}"):
            main([*command, "--out", str(tmp_path / "out")])


def test_leaks_are_looked_for_once_where_variants_share_their_sets(file, tmp_path, monkeypatch):
    looked = []
    monkeypatch.setattr(module, "refuse_tested", lambda trained, tested, where, check: looked.append((where, check)))
    monkeypatch.setattr(module, "execute", lambda jobs, run: iter(()))
    two = tmp_path / "two.toml"
    two.write_text(f"{file.read_text()}[variants.a]\n[variants.b]\nlora = 4\n[variants.c]\nfolds = 2\n")
    with pytest.raises(AssertionError, match="0 of 12 fine-tunings gave a result"):
        main(["experiment", str(two), "--out", str(tmp_path / "out")])
    assert [where.rpartition(", ")[2] for where, _ in looked] == [*(f"fold {k}" for k in range(5)), "fold 0", "fold 1"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed = 1", "unknown key 'seed'; known are dataset, protocol"),
        ("seeds = 1", "seeds is 1, expected a list"),
        ("seeds = ['a']", "seeds is 'a', expected int"),
        ("resamples = true", "resamples is True, expected int"),
        ("resamples = -1", "resamples: got -1, expected at least 0"),
        ("[variants]\na = 3", r"variants \[a\] is 3, expected a table"),
        ('[variants."a / b"]\nseed = 5', r"\[variants.a / b\]: has seed, expected it in seeds"),
        ("[finetune]\nout = 'x'", r"\[finetune\]: has out, expected it in --out"),
        ("[psi]\nseed = 1", r"\[psi\]: has seed, expected it in \[finetune\]"),
        ("[variants.a]\npsi = true", r"\[variants.a\]: psi is True, expected false"),
        ("[finetune]\nepochs = 3", r"e.toml \[finetune\]: unknown key 'epochs'"),
        ('[variants."no PSI"]\npreset = 1', r"\[variants.no PSI\]: preset is 1, expected str"),
        ("", "manifest: is not set; expected it in the protocol"),
    ],
    ids=[
        "key",
        "kind",
        "kind-inside",
        "flag",
        "negative",
        "no-table",
        "seed",
        "out",
        "psi",
        "psi-on",
        "setting",
        "variant",
        "empty",
    ],
)
def test_a_bad_file_is_told_in_a_line(tmp_path, text, message):
    (tmp_path / "e.toml").write_text(text)
    with pytest.raises(SystemExit, match=message):
        main(["experiment", str(tmp_path / "e.toml"), "--out", str(tmp_path / "out")])


@pytest.mark.parametrize(("visible", "wanted"), [(None, "1"), ("4,6", "6"), ("", "")])
def test_each_process_has_a_gpu_of_those_that_are_shown(visible, wanted, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible or "")
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(module, "end_with_parent", lambda: None)
    cards = queue.SimpleQueue()
    cards.put(1)
    module._take_card(cards)
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == wanted


def rows_of(task, truth, predicted, subjects, names=None):
    outputs = np.eye(task.outputs)[predicted] if isinstance(task, Classification) else predicted
    labels = [task.classes[t] if isinstance(task, Classification) else " ".join(map(str, t)) for t in truth]
    return [
        {"path": f"{i}.mp4", "start": None, "end": None, "dataset": names[i] if names else None, "subject": subjects[i],
         "label": labels[i], "outputs": list(outputs[i]), "fold": f"fold {i % 4}", "kind": "last", "seed": 0}
        for i in range(len(truth))
    ]  # fmt: skip


def test_pooled_metrics_are_those_of_all_predictions_together():
    """Not means over folds: UF1 over leave-one-subject-out folds has no meaning but pooled; the composite by data set too."""
    sklearn = pytest.importorskip("sklearn.metrics")
    rng, task = np.random.default_rng(0), Classification(("negative", "positive", "surprise"))
    truth, predicted = rng.integers(0, 3, (2, 120))
    names = [("samm", "casme2", "smic")[i // 40] for i in range(120)]
    rows = rows_of(task, truth, predicted, [f"s{i // 5}" for i in range(120)], names)
    summary = summarise_predictions(task, rows, resamples=0)["last"]
    assert summary["pooled"]["UF1"] == pytest.approx(sklearn.f1_score(truth, predicted, average="macro"))
    assert summary["pooled"]["UAR"] == pytest.approx(sklearn.recall_score(truth, predicted, average="macro"))
    parts = by_dataset(task, Pooled.of(rows))
    assert list(parts) == ["samm", "casme2", "smic"]
    assert parts["smic"]["UF1"] == pytest.approx(sklearn.f1_score(truth[80:], predicted[80:], average="macro"))


def test_intervals_are_over_subjects():
    """Clips of one person that are all alike are one observation: the interval is as wide as with one clip a person."""
    task, subjects = Classification(("a", "b")), 40
    hit = np.arange(subjects) % 2
    few = rows_of(task, np.zeros(subjects, int), 1 - hit, [f"s{i}" for i in range(subjects)])
    many = rows_of(task, np.zeros(10 * subjects, int), np.repeat(1 - hit, 10), [f"s{i // 10}" for i in range(10 * subjects)])
    narrow, wide = (interval(task, [Pooled.of(rows)], 400)["WAR"] for rows in (few, many))
    assert wide == pytest.approx(narrow) and wide[0] == pytest.approx(0.5 - 1.96 * 0.5 / subjects**0.5, abs=0.03)
    alone = rows_of(task, np.zeros(5, int), np.array([0, 1, 0, 1, 0]), ["one"] * 5)
    assert interval(task, [Pooled.of(alone)], 20)["WAR"] == (0.6, 0.6)  # one subject tells nothing of others


def test_dimensions_are_named():
    rng, task = np.random.default_rng(0), Regression(2, ("arousal", "valence"))
    truth, predicted = rng.random((2, 30, 2))
    summary = summarise_predictions(task, rows_of(task, truth, predicted, [None] * 30), resamples=5)["last"]
    assert summary["pooled"]["PCC_valence"] == pytest.approx(np.corrcoef(truth[:, 1], predicted[:, 1])[0, 1])
    assert set(summary["interval"]) == set(summary["pooled"])


def test_published_numbers_are_of_known_sets_and_metrics():
    counted = {name: len(published(name)) for name in datasets()}
    assert sum(counted.values()) == 132 and counted["crema-d"] == 9 and counted["voxceleb2"] == 0
    for name in datasets():
        for row in published(name):
            known = {f"{m}_{d}" for m in ("PCC", "CCC") for d in datasets()[name].classes} | {"UAR", "WAR", "WF1", "UF1"}
            assert row.metrics.keys() <= known and all(0 < v < 100 for v in row.metrics.values()) and row.source
    huge = next(row for row in published("dfew") if row.method == "AVF-MAE++ (H)")
    assert (huge.parameters, huge.metrics) == (521, {"UAR": 66.88, "WAR": 77.45})


FILES = sorted((Path(__file__).parents[2] / "train" / "experiments").glob("*.toml"))


@pytest.mark.parametrize("file", FILES, ids=[path.stem for path in FILES])
def test_experiment_files_are_whole(file, tmp_path, monkeypatch):
    """Each with the settings that avfmae dataset writes beside its manifest."""
    what = module.Experiment.read(file)
    assert what.dataset and str(what.protocol) == f"{what.dataset}.toml"
    monkeypatch.chdir(tmp_path)
    known = datasets()[what.dataset]
    (tmp_path / f"{known.name}.toml").write_text(finetuning(known, tmp_path / "m.csv", [], Options()))
    for run in what.runs(file).values():
        assert (run.manifest, run.classes, run.select) == (tmp_path / "m.csv", known.classes, known.metrics[0])
        assert run.model.modalities == known.modalities


def test_every_labelled_set_has_an_experiment():
    assert {path.stem for path in FILES} >= {name for name, one in datasets().items() if one.task != "pretraining"}
