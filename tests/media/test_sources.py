"""What all sources have in common, and that one more is one file."""

import csv
import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from media_files import counted_frames

import avfmae
from avfmae.checkpoints import save_weights
from avfmae.data import sources
from avfmae.data.clip import Clip
from avfmae.data.config import DataConfig
from avfmae.data.dataset import ClipDataset
from avfmae.data.loader import loader
from avfmae.data.prepare import find_clips
from avfmae.data.sources import MediaError, open_clip, shard_numbers
from avfmae.datasets.drawn import encode
from avfmae.inference.evaluate import evaluate
from avfmae.options import EvaluateConfig, InspectConfig
from avfmae.viz.inspection import inspect

TINY = avfmae.ModelConfig.preset("tiny")


@pytest.fixture
def toy(tmp_path):
    """Two clips of a kind that is registered for one test."""
    before = list(sources.KINDS)
    sys.modules.pop("npy_source", None)
    importlib.import_module("npy_source")
    for name in "ab":
        np.save(tmp_path / f"{name}.npy", counted_frames(80))
    yield [Clip(i, str(tmp_path / f"{name}.npy"), label=name) for i, name in enumerate("ab")]
    sources.KINDS[:] = before


@pytest.mark.parametrize("workers", [0, 1])
def test_a_source_of_ones_own_is_read_by_the_dataset(toy, workers):
    dataset = ClipDataset(toy, TINY, DataConfig(), "evaluate")
    (batch,) = loader(dataset, [[(0, 0), (0, 1)]], workers)
    assert batch.clips == [0, 1] and batch.bad == [] and batch.raw.frames.shape == (4, 16, 64, 112, 3)
    assert np.array_equal(batch.raw.frames[0], counted_frames(80)[np.linspace(0, 63, 16).round().astype(int)])
    assert batch.raw.sound.shape == (4, 40_960)


def test_a_source_of_ones_own_is_evaluated_and_inspected(toy, tmp_path):
    torch.manual_seed(0)
    about = {"classes": ["a", "b"], "task": "classification", "modalities": ["video", "audio"]}
    save_weights(avfmae.AVFMAEForFinetuning(TINY, 2), tmp_path / "w.safetensors", **about)
    paths = tuple(Path(c.path) for c in toy)
    evaluate(EvaluateConfig(tmp_path / "w.safetensors", paths, tmp_path / "p.csv", segments=1, crops=1, workers=0))
    with open(tmp_path / "p.csv", newline="") as file:
        assert [row["path"] for row in csv.DictReader(file)] == [c.path for c in toy]
    page = inspect(InspectConfig((tmp_path,), tmp_path / "page", preset="tiny", workers=1)).read_text()  # in a process
    assert page.count("<img") == 2 and all(c.path in page for c in toy)


def test_a_folder_is_searched_for_every_kind_of_clip(toy, tmp_path):
    assert [clip.path for clip in find_clips(tmp_path)] == [c.path for c in toy]


def test_a_kind_that_is_not_registered_is_no_clip(toy):
    sources.KINDS[:] = [kind for kind in sources.KINDS if kind.__name__ != "NpySource"]
    with pytest.raises(MediaError, match="no readable media file"):
        open_clip(toy[0]).frames([0])


def test_sound_alone_has_times_and_no_frames(media):
    source = open_clip(media["sound_wav"])
    assert (
        not source.info.has_video and source.info.times[-1] == pytest.approx(4.0, abs=0.05) and len(source.sound(0, 1)) == 16_000
    )
    with pytest.raises(MediaError, match="has no video track"):
        source.frames([0])
    with pytest.raises(MediaError, match="has no video track"):
        next(source.frames_between(0, 1))


def test_a_separate_sound_file_replaces_the_sound_and_nothing_else(media):
    alone, both = open_clip(media["silent_mp4"]), open_clip(Clip(0, media["silent_mp4"], audio_path=media["sound_wav"]))
    assert not alone.info.has_audio and both.info.has_audio and (alone.path, both.sound_path) == (both.path, media["sound_wav"])
    assert np.array_equal(alone.frames([3, 7]), both.frames([3, 7])) and alone.digest() == both.digest()
    assert np.array_equal(both.sound(1.0, 2.0), open_clip(media["sound_wav"]).sound(1.0, 2.0))


def test_shards_are_told_by_paths_alone():
    paths = ["set/000000.tar/a", "set/000001.tar/b", "set/000000.tar/c"]
    assert shard_numbers(paths).tolist() == [0, 1, 0] and shard_numbers([*paths, "a.mp4"]) is None


def test_open_clip_is_a_public_name_and_needs_no_torch(media):
    code = "import avfmae, sys; print(len(avfmae.data.sources.open_clip(sys.argv[1]).info.times), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, media["good_mp4"]], capture_output=True, text=True)
    assert done.stdout.split() == ["80", "False"], done.stderr


def test_frames_one_after_the_other_may_be_many_and_large(tmp_path, monkeypatch):
    """What is read at once is limited, not what goes by."""
    encode(tmp_path / "long.mp4", counted_frames(60), None)
    monkeypatch.setattr("avfmae.data.sources.source.LARGEST_CLIP", 30 * 64 * 112 * 3)
    source = open_clip(str(tmp_path / "long.mp4"))
    assert sum(1 for _ in source.frames_between(0, 60)) == 60
    with pytest.raises(MediaError, match="60 frames of 112 x 64 pixels are more than is read"):
        source.frames(list(range(60)))


def test_a_sound_of_its_own_keeps_the_video_s_flags_and_may_be_none(media):
    source = open_clip(Clip(0, media["good_mp4"], media["silent_mp4"]))
    source.video.flags.add("of-the-video")
    source.audio.flags.add("of-the-sound")
    assert {"of-the-video", "of-the-sound"} <= source.flags
    assert source.sound(0.0, 1.0).shape == (0,)
