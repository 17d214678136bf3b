"""Predictions over a video: times and faces are right, what is missing is told, and what is written opens elsewhere."""

import csv
import json
import os

import av
import numpy as np
import pyarrow.parquet
import pytest
import torch

import avfmae
from avfmae.checkpoints import save_weights
from avfmae.cli import main
from avfmae.data.config import DataConfig
from avfmae.data.faces import Face
from avfmae.data.sources import MediaError
from avfmae.datasets.drawn import encode
from avfmae.inference.predictor import Predictor
from avfmae.models.finetuning import AVFMAEForFinetuning
from avfmae.tasks.classification import Classification
from avfmae.viz.video import write_mp4

TASK = Classification(("calm", "glad", "sad"))
DATA = DataConfig(stride=8)  # the demo's model sees 4 frames: windows of 1.28 s


def make_model(**changes):
    torch.manual_seed(0)
    return AVFMAEForFinetuning(avfmae.ModelConfig.preset("demo").replace(**changes), 3, "classification").eval()


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def weights(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "weights.safetensors"
    about = {"task": "classification", "data": {"stride": 8}, **TASK.about()}
    save_weights(model, path, **about)
    return path


def bright_squares(frames):
    """A detector of squares that are brighter than 200 in red or in green, each a face."""
    found = []
    for frame in frames:
        boxes = []
        for colour in (0, 1):
            ys, xs = np.nonzero((frame[..., colour] > 200) & (frame[..., 2] < 60))
            if len(xs) > 50:
                x, y = float(xs.min()), float(ys.min())
                boxes.append(Face((x, y, float(xs.max() + 1) - x, float(ys.max() + 1) - y), 1.0))
        found.append(boxes)
    return found


@pytest.fixture
def found(monkeypatch):
    monkeypatch.setattr("avfmae.inference.predictor._detector", lambda *_: bright_squares)


def two_faces(count=100, shown=lambda number: True):
    """A red square that moves to the right, and a smaller green one."""
    frames = np.full((count, 96, 160, 3), 90, np.uint8)
    for number in range(count):
        if shown(number):
            left = 10 + number // 5
            frames[number, 20:60, left : left + 40] = (230, 20, 20)
        frames[number, 60:84, 120:144] = (20, 230, 20)
    return frames


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "two.mp4"
    encode(path, two_faces(), 0.1 * np.random.default_rng(0).standard_normal(16_000 * 4), rate=16_000)
    return path


def test_rows_tell_when_who_and_what(model, video, found):
    result = Predictor(model, TASK, DATA, faces="all", step=0.64)(video)
    assert [r["start"] for r in result.rows] == [s for s in (0.0, 0.64, 1.28, 1.92, 2.56, 2.72) for _ in range(2)]
    assert {round(r["end"] - r["start"], 3) for r in result.rows} == {1.28}
    assert [r["face"] for r in result.rows] == [1, 2] * 6 and [f.number for f in result.faces] == [1, 2]
    for row in result.rows:
        assert sum(row[c] for c in TASK.classes) == pytest.approx(1, abs=2e-4) and row["note"] == ""
        assert row["prediction"] == max(TASK.classes, key=row.__getitem__)
        middle = 25 * (row["start"] + row["end"]) / 2
        x, y, w, h = (20, 60, 24, 24) if row["face"] == 2 else (10 + middle // 5, 20, 40, 40)
        assert row["face"] == 2 or abs(row["x"] - x) < 3
        assert (row["y"], row["w"], row["h"]) == pytest.approx((y, w, h), abs=3)
    assert result.columns == list(TASK.classes) and sum(result.mean().values()) == pytest.approx(1, abs=1e-3)
    red, green = (face.thumbnail.mean((0, 1)) for face in result.faces)
    assert red[0] > red[1] and green[1] > green[0]
    main_only = Predictor(model, TASK, DATA)(video)
    assert {r["face"] for r in main_only.rows} == {1} and len(main_only.faces) == 1


def test_each_window_is_looked_at_however_few_its_frames_are(model, video, found, tmp_path):
    assert {r["face"] for r in Predictor(model, TASK, DATA, every=100)(video).rows} == {1}
    write_mp4(tmp_path / "slow.mp4", enumerate(two_faces(12)), 1, None)
    assert {r["face"] for r in Predictor(model, TASK, DATA)(tmp_path / "slow.mp4").rows} == {1}


def test_what_is_predicted_does_not_depend_on_the_batch(model, video, found):
    one, many = (Predictor(model, TASK, DATA, faces="all", batch=n)(video).rows for n in (1, 8))
    for a, b in zip(one, many, strict=True):
        assert all(a[c] == pytest.approx(b[c], abs=1.1e-4) for c in TASK.classes)


def test_the_model_sees_the_face_as_evaluation_cuts_it(model, found, tmp_path, monkeypatch):
    """The same crop, from the same frames and the same sound, as a manifest with the face's box gives."""
    from avfmae.data.clip import Clip
    from avfmae.data.dataset import ClipDataset
    from avfmae.data.preprocess import preprocess

    frames = two_faces(32)
    frames[:, 20:60, 10:60] = 90
    frames[:, 20:60, 30:70] = (230, 20, 20)  # it stands still
    encode(tmp_path / "still.mp4", frames, 0.1 * np.random.default_rng(0).standard_normal(16_000 * 2), rate=16_000)
    predictor, given = Predictor(model, TASK, DATA), []
    monkeypatch.setattr(predictor, "inputs", lambda *parts: given.append(Predictor.inputs(predictor, *parts)) or given[-1])
    (row,) = predictor(tmp_path / "still.mp4").rows
    clip = Clip(0, str(tmp_path / "still.mp4"), face=tuple(row[c] for c in "xywh"))
    data = DataConfig(stride=8, segments=1, crops=1)
    batch = preprocess(ClipDataset([clip], model.cfg, data, "evaluate").batch([(0, 0)]), model.cfg)
    assert torch.equal(given[0][0], batch.video) and torch.allclose(given[0][1], batch.audio, atol=1e-5)


def test_a_window_half_without_its_face_says_so(model, found, tmp_path):
    encode(tmp_path / "lost.mp4", two_faces(96, lambda number: number < 40)[:, :, :110], None)
    rows = Predictor(model, TASK, DATA, step=1.28)(tmp_path / "lost.mp4").rows
    assert [r["face"] for r in rows] == [1, 1, None]
    assert rows[0]["note"] == "no sound: silence is heard" and "face in 17% of the window" in rows[1]["note"]
    assert rows[2]["note"].startswith("no face") and "calm" not in rows[2]


def test_a_video_without_a_face_is_told(model, found, media):
    result = Predictor(model, TASK, DATA)(media["silent_mp4"])
    assert result.notes == ["nothing is predicted: no face is found"] and not result.columns and result.mean() == {}
    assert {r["note"] for r in result.rows} == {"no face; no sound: silence is heard"}
    result.plot()


@pytest.mark.parametrize(
    ("name", "note"),
    [("short_mp4", "shorter than a window"), ("silent_mp4", "no sound"), ("short_sound_mp4", "sound in"), ("fast_mp4", "")],
)
def test_what_is_missing_is_told_and_predicted_all_the_same(name, note, model, media):
    result = Predictor(model, TASK, DATA, detector="precropped")(media[name])
    assert result.columns == list(TASK.classes) and any(note in r["note"] for r in result.rows)
    assert all(r["face"] is None and r["calm"] is not None for r in result.rows)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("empty_mp4", "is empty"), ("text_mp4", "no readable media"), ("missing", "no such file"), ("sound_wav", "has no picture")],
)
def test_what_cannot_be_read_is_named(name, reason, model, media):
    with pytest.raises(MediaError, match=reason):
        Predictor(model, TASK, DATA, detector="precropped")(media[name])


def test_a_model_that_hears_alone_takes_any_sound(media):
    predictor = Predictor(make_model(modalities=("audio",)), TASK, DATA)
    for name in ("sound_wav", "good_mp4"):
        result = predictor(media[name])
        assert result.rows[0]["start"] == 0 and all(r["calm"] is not None for r in result.rows)
    assert predictor(media["sound_wav"]).rows[-1]["end"] == pytest.approx(4.0, abs=0.05)
    with pytest.raises(MediaError, match="has no sound, which is all that the model takes"):
        predictor(media["silent_mp4"])


def test_wrong_options_are_named(model, weights, tmp_path):
    for option, value in (("faces", "some"), ("step", 0.0), ("every", 0), ("batch", 0)):
        with pytest.raises(ValueError, match=f"{option}: got"):
            Predictor(model, TASK, DATA, **{option: value})
    with pytest.raises(FileNotFoundError):
        Predictor.from_pretrained(tmp_path)


@pytest.mark.slow
def test_the_command_writes_tables_pictures_and_a_video(weights, video, media, found, tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--model", str(weights.parent), "--out", str(out), "--annotate", "--faces=all"]
    with pytest.raises(SystemExit, match="1 of 2 videos could not be predicted"):
        main(["predict", str(video), media["text_mp4"], *options])
    said = capsys.readouterr().err
    assert "cannot predict" in said and "text.mp4" in said
    with open(out / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    table = pyarrow.parquet.read_table(out / "predictions.parquet").to_pylist()
    (kept,) = json.loads((out / "predictions.json").read_text())
    assert len(rows) == len(table) == len(kept["windows"]) == 12 and len(kept["faces"]) == 2
    for a, b, c in zip(rows, table, kept["windows"], strict=True):
        assert float(a["start"]) == b["start"] == c["start"] and float(a["glad"]) == b["glad"] == c["glad"]
        assert a["face"] == str(b["face"]) == str(c["face"]) and a["video"] == b["video"] == kept["video"] == str(video)
    folder = out / "two.mp4"
    assert {p.name for p in folder.iterdir()} == {"timeline.png", "face-1.png", "face-2.png", "annotated.mp4"}
    with av.open(str(folder / "annotated.mp4")) as container:
        assert [s.type for s in container.streams] == ["video", "audio"] and container.duration / 1e6 == pytest.approx(4, abs=0.1)
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 100 and frames[0].shape == (96, 160, 3)
    assert np.abs(frames[50].astype(int) - two_faces()[50]).max() > 100  # something is drawn


def test_foreign_names_do_not_end_the_run(weights, tmp_path, capsys):
    """Bytes that are not UTF-8, a formula for Matplotlib, one name in two folders; pictures of one pixel."""
    paths = [tmp_path / os.fsdecode(name) for name in (b"bad\xff.mp4", b"$x_{$.mp4", b"b/$x_{$.mp4")]
    (tmp_path / "b").mkdir()
    for path in paths:
        encode(path, two_faces(40)[:, :2, :2], None)
    write_mp4(tmp_path / "1.mp4", ((k / 25, np.zeros((1, 1, 3), np.uint8)) for k in range(20)), 25, None)
    given = [*map(str, paths), str(tmp_path / "1.mp4")]
    main(["predict", *given, "--model", str(weights), "--detector=precropped", "--annotate", f"--out={tmp_path / 'out'}"])
    folders = {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()}
    assert folders == {r"bad\udcff.mp4", "$x_{$.mp4", "$x_{$.mp4 (2)", "1.mp4"}
    assert all((tmp_path / "out" / name / "annotated.mp4").is_file() for name in folders)


def test_what_is_done_is_kept_when_the_run_is_stopped(weights, media, tmp_path, monkeypatch, capsys):
    stream = Predictor.stream

    def stopped(self, video, result):
        if str(video) == "later.mp4":
            raise KeyboardInterrupt
        return stream(self, video, result)

    monkeypatch.setattr(Predictor, "stream", stopped)
    with pytest.raises(SystemExit) as ended:
        main(["predict", media["good_mp4"], "later.mp4", "--model", str(weights), "--detector=precropped", f"--out={tmp_path}"])
    assert ended.value.code == 130 and "avfmae predict: stopped" in capsys.readouterr().err
    assert len(json.loads((tmp_path / "predictions.json").read_text())) == 1


def test_the_command_prints_a_table_for_other_programs(weights, media, capsys):
    main(["predict", media["good_mp4"], "--model", str(weights), "--detector", "precropped"])
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [row["start"] for row in rows] == ["0.0", "0.64", "1.28", "1.92"] and rows[0]["prediction"] in TASK.classes
    with pytest.raises(SystemExit, match="1 of 1 videos could not be predicted"):
        main(["predict", media["missing"], "--model", str(weights), "--detector", "precropped"])


def test_a_prediction_as_a_data_frame(model, media):
    pytest.importorskip("pandas")
    frame = Predictor(model, TASK, DATA, detector="precropped")(media["good_mp4"]).frame
    assert list(frame.columns[:7]) == ["start", "end", "face", "x", "y", "w", "h"] and len(frame) == 4
    assert frame[list(TASK.classes)].sum(axis=1).round(2).eq(1).all()
