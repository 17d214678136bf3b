"""A camera: windows as its frames come, in memory that stays; a file stands for the camera, as OpenCV opens it alike."""

import csv
import weakref

import numpy as np
import pytest
import torch

import avfmae
from avfmae.checkpoints import save_weights
from avfmae.cli import main
from avfmae.data.config import DataConfig
from avfmae.data.faces import Face
from avfmae.inference.camera import AHEAD, Camera, live_windows, predict_camera
from avfmae.inference.predictor import Prediction, Predictor
from avfmae.models.finetuning import AVFMAEForFinetuning
from avfmae.options import PredictConfig
from avfmae.tasks.classification import Classification

TASK = Classification(("calm", "glad", "sad"))
DATA = DataConfig(stride=8)  # the demo's model sees 4 frames: windows of 1.28 s


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return AVFMAEForFinetuning(avfmae.ModelConfig.preset("demo").replace(modalities=("video",)), 3).eval()


class Frames:
    """Frames that tell their number by nine pixels, and how many of them are alive."""

    def __init__(self, times, shot=lambda number: 0):
        self.times, self.shot, self.alive, self.most = times, shot, 0, 0

    def gone(self):
        self.alive -= 1

    def __iter__(self):
        for number, time in enumerate(self.times):
            frame = np.full((36, 64, 3), 60 + 120 * self.shot(number), np.uint8)
            frame[0, :12, 0] += np.array([number >> bit & 1 for bit in range(12)], np.uint8)
            self.alive += 1
            self.most = max(self.most, self.alive)
            weakref.finalize(frame, self.gone)
            yield time, frame
            del frame


def numbers(seen):
    return [sum(int(v - frame[0, 20, 0]) << bit for bit, v in enumerate(frame[0, :12, 0])) for frame in seen.frames]


def windows(frames, step=None, detector=None):
    return live_windows(iter(frames), "camera", 4, DATA, step, detector, 5, {})


@pytest.mark.parametrize(("step", "apart"), [(None, 16), (2.0, 50)], ids=["half-a-window", "further-apart"])
def test_each_window_has_the_frames_of_its_time(step, apart):
    found = list(windows(Frames(np.arange(200) / 25), step))
    assert [seen.first for seen in found] == list(range(0, 200 - 31, apart))
    for seen in found:
        assert numbers(seen) == list(seen.window.frames) == [seen.first + n for n in (0, 10, 21, 31)]
        assert (seen.window.start, seen.window.end) == pytest.approx((seen.first / 25, seen.first / 25 + 1.28), abs=1e-6)


def test_memory_does_not_grow_with_time():
    """A window's 33 frames, and those that are read ahead, whose number is the scheduler's."""
    for length in (150, 3000):
        frames = Frames(np.arange(length) / 25)
        assert len(list(windows(frames))) > 5
        assert frames.most <= 33 + AHEAD + 6


def test_no_window_crosses_a_cut():
    found = list(windows(Frames(np.arange(150) / 25, shot=lambda number: number // 50 % 2)))
    assert {(seen.first // 50, (seen.last - 1) // 50) for seen in found} == {(0, 0), (1, 1), (2, 2)}


def test_frames_that_are_lost_leave_a_gap():
    """A camera that is too fast: windows keep their seconds."""
    times = np.delete(np.arange(150) / 25, np.s_[40:60])
    for seen in windows(Frames(times)):
        assert seen.window.end - seen.window.start == pytest.approx(1.28, abs=0.05)
        shown = times[seen.window.frames]
        assert (shown >= seen.window.start - 1e-6).all() and (shown < seen.window.end).all()


def test_faces_keep_their_numbers(model, monkeypatch, media):
    box = Face((10.0, 10.0, 20.0, 20.0), 1.0)
    monkeypatch.setattr("avfmae.inference.predictor._detector", lambda *_: lambda frames: [[box] for _ in frames])
    result, faces = Prediction("camera"), []
    for rows in predict_camera(Predictor(model, TASK, DATA), Camera(media["good_mp4"]), result):
        faces += [row["face"] for row in rows]
        assert result.rows == [] and len(result.faces) == 1
        assert (result.faces[0].thumbnail.size > 0) == (len(faces) == 1)
    assert faces == [1] * len(faces) and len(faces) > 2 and not result.faces[0].boxes


def test_a_camera_says_what_the_file_says(model, media):
    predictor = Predictor(model, TASK, DATA, detector="precropped", step=0.64)
    of_file = {row["start"]: row for row in predictor(media["good_mp4"]).rows}
    live = [row for rows in predict_camera(predictor, Camera(media["good_mp4"]), Prediction("")) for row in rows]
    assert [row["start"] for row in live] == [0.0, 0.64, 1.28, 1.92]
    for row in live:
        assert all(row[c] == pytest.approx(of_file[row["start"]][c], abs=0.02) for c in TASK.classes)  # other decoders' colours


def test_the_command_prints_rows_until_the_stream_ends(model, media, tmp_path, capsys):
    save_weights(model, tmp_path / "weights.safetensors", task="classification", data={"stride": 8}, **TASK.about())
    given = ["predict", "--model", str(tmp_path), "--detector", "precropped", "--camera"]
    main([*given, media["good_mp4"]])
    printed = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert len(printed) == 4 and printed[0]["prediction"] in TASK.classes
    main([*given, media["good_mp4"], "--out", str(tmp_path / "out")])
    with open(tmp_path / "out" / "predictions.csv") as file:
        assert list(csv.DictReader(file)) == printed
    with pytest.raises(SystemExit, match="camera 77: cannot be opened; is "):
        main([*given, "77"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"camera": "0", "videos": ("a.mp4",)}, "videos, camera: got both"),
        ({}, "videos, camera: got neither"),
        ({"camera": "0", "whole": True}, "whole: needs a file"),
    ],
    ids=["both", "neither", "whole"],
)
def test_options_that_do_not_go_together(options, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        PredictConfig(**{"videos": (), "model": tmp_path} | options)


def test_a_model_that_only_hears_has_no_use_for_a_camera(media):
    deaf = AVFMAEForFinetuning(avfmae.ModelConfig.preset("demo").replace(modalities=("audio",)), 3)
    with pytest.raises(ValueError, match="the model only hears"):
        next(predict_camera(Predictor(deaf, TASK, DATA), Camera(media["good_mp4"]), Prediction("")))
