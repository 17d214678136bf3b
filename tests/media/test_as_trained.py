"""What a model was trained on goes with its weights: it sees of raw files what it saw in training, and says the same of them."""

import csv
import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from media_files import write_wav
from PIL import Image
from processes import run_python

import avfmae
from avfmae.checkpoints import read_about, save_weights
from avfmae.cli import main
from avfmae.data import faces
from avfmae.data.clip import Clip
from avfmae.data.config import DataConfig, Preparation
from avfmae.data.cropping import seen_by_training, with_a_detector
from avfmae.data.dataset import ClipDataset
from avfmae.data.manifest import read_manifest, write_manifest
from avfmae.data.prepare import preparation, prepare, prepare_clip
from avfmae.data.shards import Sample, write_shard
from avfmae.data.sources import open_clip
from avfmae.datasets.drawn import EMOTIONS, DemoSet, make_demo_set
from avfmae.options import PrepareConfig
from avfmae.stages.config import FinetuneConfig
from avfmae.stages.crops import preparation_of_run
from avfmae.stages.finetune import finetune
from avfmae.training.config import OptimConfig

pytestmark = pytest.mark.slow

TINY = avfmae.ModelConfig.preset("tiny")
ONE_VIEW = DataConfig(workers=0, segments=1, crops=1)
LANDMARKS = faces.TEMPLATE * 60 + (18, 20)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A manifest with boxes, of three people, the last for testing."""
    folder = tmp_path_factory.mktemp("as-trained")
    return make_demo_set(folder, DemoSet("faces", first=7, people=3, labels={e: e for e in EMOTIONS}), test_people=1)


@pytest.fixture(scope="module")
def bare(drawn):
    """The same without boxes."""
    write_manifest(drawn.with_name("bare.csv"), [replace(clip, face=None) for clip in read_manifest(drawn)])
    return drawn.with_name("bare.csv")


def prepared(source, out, detector="manifest", **changes):
    return prepare(PrepareConfig(source, out, **{"detector": detector, "margin": 0.05, "size": 80, "quality": 10} | changes))


@pytest.fixture(scope="module")
def by_boxes(drawn):
    return prepared(drawn, drawn.parent / "by-boxes")


@pytest.fixture(scope="module")
def tuned(by_boxes, tmp_path_factory):
    """The folder of a fine-tuning on the prepared clips, of one clip's file damaged, and its results."""
    out, optim = tmp_path_factory.mktemp("tuned"), OptimConfig(lr=2e-2, epochs=2, warmup_epochs=0, total_batch=6)
    run = FinetuneConfig(preset="tiny", manifest=by_boxes, out=out, data=ONE_VIEW, optim=optim, val_share=0.0, mixup=0, cutmix=0)
    return out, finetune(run)


def evaluated(weights, manifest, out, *options):
    main(["evaluate", str(weights), str(manifest), "--out", str(out), "--workers", "0", *options])
    with open(out, newline="") as file:
        return list(csv.DictReader(file))


def shares(rows):
    return np.array([[float(row[name]) for name in EMOTIONS] for row in rows])


def samples(clips, how):
    dataset = ClipDataset(clips, TINY, ONE_VIEW, "evaluate", modalities=("video",), preparation=how)
    return [sample for i in range(len(clips)) if (sample := dataset[0, i][0]) is not None]


def pictures(clips, how):
    """What the model is shown of each clip."""
    return [sample.windows[0].astype(float) for sample in samples(clips, how) if sample.windows]


def test_the_prepared_clips_give_the_fine_tunings_own_numbers(tuned, by_boxes, tmp_path, capsys):
    out, results = tuned
    rows = evaluated(out / "weights.safetensors", by_boxes, tmp_path / "p.csv", "--split", "test")
    with open(out / "predictions.csv", newline="") as file:
        written = list(csv.DictReader(file))
    assert len(rows) == 6 and [row["prediction"] for row in rows] == [row["prediction"] for row in written]
    assert np.allclose(shares(rows), shares(written), atol=2e-4) and np.ptp(shares(rows), 0).max() > 0.01
    assert f"UAR {results['summary']['last']['UAR']['mean']:.4f}" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["boxes", "no-boxes"])
def test_raw_files_are_seen_as_the_prepared_clips(kind, tuned, by_boxes, drawn, bare, tmp_path, capsys):
    weights, raw = tuned[0] / "weights.safetensors", drawn if kind == "boxes" else bare
    how = Preparation.of(read_about(weights)["preparation"])
    assert how is not None and (how.detector, how.margin, how.size, how.spread) == ("manifest", 0.05, 80, 0.0)
    assert how.place == pytest.approx((48 / 96, 49 / 96, 64 / 96, 64 / 96), abs=1e-3)
    clips = [list(read_manifest(path))[-6:] for path in (by_boxes, raw)]
    for stored, cut in zip(*(pictures(some, how) for some in clips), strict=True):
        assert stored.shape == cut.shape and np.abs(stored - cut).mean() < 4  # what encoding twice costs
    assert np.abs(stored - faces.cv2.resize(open_clip(clips[1][-1]).frames([0])[0], (80, 80))).mean() > 8
    rows = [evaluated(weights, path, tmp_path / "p.csv", "--split", "test") for path in (by_boxes, raw)]
    assert np.abs(shares(rows[0]) - shares(rows[1])).max() < 0.03
    assert "raw clips are cut as in training: faces by the manifest's boxes, margin 0.05, 80 pixels" in capsys.readouterr().err
    whole = evaluated(weights, bare, tmp_path / "p.csv", "--split", "test", "--no-find-faces")
    assert np.abs(shares(rows[0]) - shares(whole)).max() > np.abs(shares(rows[0]) - shares(rows[1])).max()


@pytest.mark.parametrize("landmarks", [None, LANDMARKS], ids=["boxes", "landmarks"])
def test_a_detectors_crop_is_made_again(landmarks, bare, tmp_path, monkeypatch):
    """Of the same margin and, where there are landmarks, turned to the template."""
    found = faces.Face((20.0, 18.0, 50.0, 56.0), 1.0, landmarks)
    monkeypatch.setattr(faces, "make_detector", lambda *_: lambda frames: [[found] for _ in frames])
    clips = list(read_manifest(bare))[:2]
    write_manifest(tmp_path / "m.csv", clips)
    (tmp_path / "yunet.onnx").touch()
    detector = "haar" if landmarks is None else "yunet"
    yunet = tmp_path / "yunet.onnx" if landmarks is not None else None
    run = PrepareConfig(tmp_path / "m.csv", tmp_path / "set", detector=detector, yunet=yunet, margin=0.2, size=64, quality=10)
    made = [sample for clip in clips if isinstance(sample := prepare_clip(clip, run), Sample)]
    (tmp_path / "set").mkdir()
    write_shard(tmp_path / "set" / "0.tar", made, preparation(run))
    stored = [replace(c, path=f"{tmp_path}/set/0.tar/{s.row['key']}") for c, s in zip(clips, made, strict=True)]
    how, ways = seen_by_training(stored, ONE_VIEW)
    assert how is not None and (how.detector, how.margin, how.size, ways) == (
        detector,
        0.2,
        64,
        [replace(how, place=None, spread=0.0)],
    )
    for a, b in zip(pictures(stored, how), pictures(clips, how), strict=True):
        assert np.abs(a - b).mean() < 4


@pytest.mark.parametrize("missing", ["error", "silence"])
def test_sound_behind_the_last_frame_is_not_heard(missing, tmp_path):
    """Nor behind a segment's: a prepared set does not hold it, and a raw file is heard alike."""
    (tmp_path / "frames").mkdir()
    for number in range(60):
        Image.new("RGB", (48, 48), (number, 90, 90)).save(tmp_path / "frames" / f"{number:03d}.png")
    write_wav(tmp_path / "a.wav", np.random.default_rng(0).normal(size=6 * 16_000) / 9, 16_000)
    clips = [
        Clip(i, f"{tmp_path}/frames", f"{tmp_path}/a.wav", start, end) for i, (start, end) in enumerate([(0.0, None), (0.4, 1.6)])
    ]
    run = PrepareConfig(tmp_path, tmp_path, detector="precropped", size=48)
    made = [sample for clip in clips if isinstance(sample := prepare_clip(clip, run), Sample)]
    (tmp_path / "set").mkdir()
    write_shard(tmp_path / "set" / "0.tar", made, preparation(run))
    data = replace(ONE_VIEW, missing_audio=missing)
    for clip, sample, heard in zip(clips, made, (38_400, 19_200), strict=True):
        stored = Clip(clip.id, f"{tmp_path}/set/0.tar/{sample.row['key']}")
        sounds = [ClipDataset([c], TINY, data, "evaluate", modalities=("audio",))[0, 0][0].sounds[0] for c in (clip, stored)]
        assert [len(sound) for sound in sounds] == [heard if missing == "error" else 40_960] * 2
        assert np.abs(sounds[0] - sounds[1]).max() < 1e-4 < np.abs(sounds[0][heard - 1])


def test_clips_that_were_cut_in_another_way_are_told(tuned, by_boxes, bare, tmp_path, capsys):
    """Few of them, beside others that were cut as in training."""
    write_manifest(tmp_path / "few.csv", list(read_manifest(bare))[:2])
    other = prepared(tmp_path / "few.csv", tmp_path / "other", "precropped")
    write_manifest(tmp_path / "mixed.csv", [*list(read_manifest(by_boxes))[-4:], *read_manifest(other)])
    evaluated(tuned[0] / "weights.safetensors", tmp_path / "mixed.csv", tmp_path / "p.csv")
    said = capsys.readouterr().err
    assert "clips show whole frames" in said and "trained on faces by the manifest's boxes" in said and "raw clips" not in said


def test_raw_training_clips_with_boxes_are_remembered_too(drawn, bare):
    how, _ = seen_by_training(read_manifest(drawn), replace(ONE_VIEW, face_margin=0.05))
    assert how is not None and (how.detector, how.margin, how.size) == ("manifest", 0.05, None)
    boxes = [[sample.boxes for sample in samples(list(read_manifest(manifest))[:6], how)] for manifest in (drawn, bare)]
    boxes = np.array(boxes)
    assert boxes.shape == (2, 6, 1, 4) and np.allclose(*boxes, atol=0.1) and boxes.max() < 96  # a part of the frame
    whole, _ = seen_by_training(read_manifest(bare), ONE_VIEW)
    assert str(whole) == "whole frames"
    assert samples(list(read_manifest(drawn))[:1], whole)[0].boxes == [(0, 0, 96, 96)]


def test_fine_tuning_cuts_raw_clips_as_the_initial_weights_saw(tuned, by_boxes, bare):
    weights = tuned[0] / "weights.safetensors"
    run = FinetuneConfig(preset="tiny", init=weights, data=ONE_VIEW)
    trained = Preparation.of(read_about(weights)["preparation"])
    assert preparation_of_run(run, read_manifest(bare)) == trained
    assert preparation_of_run(run, read_manifest(by_boxes)) == trained
    run.data = replace(ONE_VIEW, find_faces=False)
    assert str(preparation_of_run(run, read_manifest(bare))) == "whole frames"


def test_where_no_face_is_found_the_usual_place_is_taken_and_said(bare, monkeypatch):
    monkeypatch.setattr(faces, "make_detector", lambda *_: lambda frames: [[] for _ in frames])
    how = Preparation("manifest", margin=0.0, size=64, place=(0.5, 0.5, 0.5, 0.5))
    clips = list(read_manifest(bare))[:1]
    (sample,) = samples(clips, how)
    frame = open_clip(clips[0]).frames([0])[0].astype(float)
    assert sample.flags == {"no-face"}
    middle = faces.cv2.resize(frame[24:72, 24:72], (64, 64))
    assert np.abs(pictures(clips, how)[0][0] - middle).mean() < 3


def test_a_face_elsewhere_is_taken_where_it_is_and_not_aligned(bare, monkeypatch):
    """Given boxes were not, whatever landmarks the detector gives."""
    found = faces.Face((10.0, 14.0, 60.0, 60.0), 1.0, LANDMARKS)
    monkeypatch.setattr(faces, "make_detector", lambda *_: lambda frames: [[found] for _ in frames])
    clips = list(read_manifest(bare))[:1]
    frame = open_clip(clips[0]).frames([0])[0].astype(float)
    for spread, x, y in ((0.0, 16, 17), (0.1, 10, 14)):
        how = Preparation("manifest", margin=0.0, size=60, place=(48 / 96, 49 / 96, 64 / 96, 64 / 96), spread=spread)
        side = 60 if spread else 64
        want = faces.cv2.resize(frame[y : y + side, x : x + side], (60, 60))
        assert np.abs(pictures(clips, how)[0][0] - want).mean() < 3


def test_a_detector_that_is_not_here_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("avfmae.data.cropping.is_installed", lambda: False)
    how, word = with_a_detector(Preparation("mtcnn"), None)
    assert how.detector == "haar" and word is not None and "pip install 'avfmae[faces]'" in word
    trained = Preparation("yunet", yunet="/somewhere/yunet.onnx", size=176)
    how, word = with_a_detector(trained, None)
    assert how.detector == "haar" and word is not None and "/somewhere/yunet.onnx is not here (--yunet FILE.onnx)" in word
    (tmp_path / "y.onnx").touch()
    assert with_a_detector(trained, str(tmp_path / "y.onnx")) == (replace(trained, yunet=str(tmp_path / "y.onnx")), None)


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("untrained") / "weights.safetensors"
    about = {"task": "classification", "classes": EMOTIONS, "modalities": ["video", "audio"], "data": asdict(ONE_VIEW)}
    save_weights(avfmae.AVFMAEForFinetuning(TINY, len(EMOTIONS)), path, **about | {"classes": list(EMOTIONS)})
    return path


@pytest.fixture
def labels_of_all_kinds(bare, media, tmp_path):
    clips = list(read_manifest(bare))[-4:]
    changed = [clips[0], replace(clips[1], label="bored"), replace(clips[2], label=None), replace(clips[3], split="train")]
    changed.append(Clip(4, media["empty_mp4"], label="sad", split="test"))
    write_manifest(tmp_path / "m.csv", [replace(clip, id=i) for i, clip in enumerate(changed)])
    return tmp_path / "m.csv"


def test_every_clip_is_predicted_and_what_is_not_scored_is_said(untrained, labels_of_all_kinds, tmp_path, capsys):
    rows = evaluated(untrained, labels_of_all_kinds, tmp_path / "p.csv")
    said = capsys.readouterr().err
    assert len(rows) == 5 and [bool(row["prediction"]) for row in rows] == [True] * 4 + [False]
    assert "is empty" in rows[4]["note"] and [row["split"] for row in rows] == ["test"] * 3 + ["train", "test"]
    assert "1 of 5 clips are not scored: no label\n" in said
    assert "1 of 5 clips are not scored: label 'bored' is none of the classes" in said
    assert "has the splits test (1 clips), train (1 clips); each is scored by itself" in said
    assert "test: UAR" in said and "train: UAR" in said


def test_one_split_is_taken(untrained, labels_of_all_kinds, tmp_path, capsys):
    rows = evaluated(untrained, labels_of_all_kinds, tmp_path / "p.csv", "--split", "train")
    assert len(rows) == 1 and "train: UAR" in capsys.readouterr().err
    with pytest.raises(SystemExit, match=r"split: got 'dev', which no clip of .* has; its splits are 'test', 'train'"):
        evaluated(untrained, labels_of_all_kinds, tmp_path / "p.csv", "--split", "dev")
    with pytest.raises(SystemExit, match="split: got 'test', but the clips are videos"):
        main(["evaluate", str(untrained), "a.mp4", "--split", "test"])


def test_two_processes_share_the_clips(untrained, labels_of_all_kinds, tmp_path):
    alone = evaluated(untrained, labels_of_all_kinds, tmp_path / "one.csv")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "avfmae"]
    arguments = ["evaluate", untrained, labels_of_all_kinds, "--out", tmp_path / "two.csv", "--workers", "0"]
    done = run_python(*launcher, *arguments)
    assert done.returncode == 0 and done.stderr.count("test: UAR") == 1, done.stderr[-2000:]
    with open(tmp_path / "two.csv", newline="") as file:
        assert list(csv.DictReader(file)) == alone


def test_outputs_of_regression_have_names(drawn, tmp_path):
    clips = [replace(clip, label=f"{i % 3} {i % 2}") for i, clip in enumerate(read_manifest(drawn))]
    write_manifest(tmp_path / "m.csv", clips)
    optim = OptimConfig(epochs=1, warmup_epochs=0, total_batch=6)
    run = FinetuneConfig(preset="tiny", manifest=tmp_path / "m.csv", out=tmp_path / "run", data=ONE_VIEW, optim=optim,
                         task="regression", classes=("valence", "arousal"), val_share=0.0)  # fmt: skip
    finetune(run)
    about = read_about(tmp_path / "run" / "weights.safetensors")
    assert about["names"] == ["valence", "arousal"] and json.loads(json.dumps(about["data"]))["segments"] == 1
    rows = evaluated(tmp_path / "run" / "weights.safetensors", tmp_path / "m.csv", tmp_path / "p.csv", "--split", "test")
    assert all(float(row["valence"]) == float(row["valence"]) and row["arousal"] for row in rows)
