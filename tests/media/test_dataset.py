"""From a manifest to batches: windows, augmentation, order, replacement."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from avfmae.config import ModelConfig
from avfmae.data import augment
from avfmae.data.clip import Clip
from avfmae.data.config import DataConfig
from avfmae.data.dataset import ClipDataset, PretrainDataset, sample_window
from avfmae.data.loader import loader
from avfmae.data.manifest import read_manifest, read_released_list, write_manifest
from avfmae.data.preprocess import preprocess
from avfmae.data.sampler import BatchSampler
from avfmae.data.sources import VideoInfo
from avfmae.tasks.classification import Classification

TINY = ModelConfig.preset("tiny")


def info(count, fps=25.0, start=0.0):
    return VideoInfo(start + np.arange(count) / fps, start, fps, True, True)


@pytest.mark.parametrize(
    ("fps", "count", "step"), [(25, 200, 4), (30, 200, 4), (29.97, 200, 4), (50, 400, 8), (15, 120, 2.4), (100, 800, 16)]
)
def test_windows_span_the_same_time_at_any_rate(fps, count, step):
    window = sample_window(info(count, fps), Clip(0, "x"), 0.0, 16, DataConfig(), spread=False)
    behind = np.arange(16) * step - window.frames  # the frame that is shown at that time
    assert behind.min() > -1e-6 and behind.max() < 1
    assert window.end - window.start == pytest.approx(16 * step / fps, abs=1.5 / fps)


def test_windows_of_fine_tuning_spread_over_64_frames():
    frames = sample_window(info(64), Clip(0, "x"), 0.0, 16, DataConfig(), spread=True).frames
    assert frames[0] == 0 and frames[-1] == 63 and set(np.diff(frames)) == {4, 5}


def test_short_clips_repeat_their_last_frame():
    window = sample_window(info(20), Clip(0, "x"), 0.7, 16, DataConfig(), spread=False)
    assert window.frames.tolist() == [0, 4, 8, 12, 16, *[19] * 11] and window.seconds == pytest.approx(2.56)
    assert window.end - window.start == pytest.approx(20 / 25)


def test_start_and_end_bound_the_window():
    clip = Clip(0, "x", start=2.0, end=3.0)
    for position in (0.0, 1.0):
        window = sample_window(info(200, start=0.5), clip, position, 16, DataConfig(), spread=False)
        assert window.frames.min() == 50 and window.frames.max() == 74 and window.end <= 3.5
    uniform = sample_window(info(200), clip, 0, 16, DataConfig(sampling="uniform"), spread=True).frames
    assert uniform[0] == 50 and uniform[-1] == 74


def test_every_position_stays_inside():
    for position in np.linspace(0, 0.999999, 9):
        frames = sample_window(info(75), Clip(0, "x"), position, 16, DataConfig(), spread=False).frames
        assert 0 <= frames[0] <= 11 and frames[-1] <= 74


def test_boxes_lie_in_the_frame():
    rng = np.random.default_rng(0)
    for within in ((0, 0, 200, 100), (10, 20, 80, 90)):
        boxes = [f(within, rng) for f in (augment.multi_scale_box, augment.random_resized_box) for _ in range(200)]
        boxes += [augment.view_box(within, v, 2) for v in range(2)]
        low, high = np.min(boxes, axis=0), np.max(boxes, axis=0)
        assert (low[:2] >= within[:2]).all() and (high[2:] <= np.array(within[2:]) + 1e-6).all()
    sides = {(round(b[2] - b[0], 1), round(b[3] - b[1], 1)) for b in boxes[:200]}
    assert len(sides) == 10  # four scales, at most one step of distortion
    assert augment.view_box((0, 0, 200, 100), 0, 2) == (0, 0, 100, 100) and augment.view_box((0, 0, 200, 100), 1, 2) == (
        100,
        0,
        200,
        100,
    )


def test_face_boxes_get_their_margin_and_stay_square():
    left, top, right, bottom = augment.face_box((50, 40, 20, 30), (200, 300), margin=0.5)
    assert (right - left, bottom - top) == (60, 60) and (left + right) / 2 == 60 and (top + bottom) / 2 == 55
    assert augment.face_box((0, 0, 90, 90), (100, 100), 0.5) == (0, 0, 100, 100)


def test_augmentation_treats_all_frames_alike():
    frames = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)).repeat(5, 1, 1, 1)
    draws = [augment.draw(np.random.default_rng(seed), 5, (32, 32), (7.0, 4), 0.5, 0.0) for seed in range(40)]
    out = augment.apply(frames.expand(40, -1, -1, -1, -1), draws)
    assert out.shape == (40, *frames.shape) and out.dtype == torch.uint8 and (out == out[:, :1]).all()
    assert sum(not torch.equal(clip, frames) for clip in out) > 20


def test_erasing_puts_noise_into_one_place():
    frames = torch.zeros(1, 5, 64, 64, 3, dtype=torch.uint8)
    draw = augment.draw(np.random.default_rng(1), 5, (64, 64), (7.0, 0), 0.0, 1.0)
    place = (augment.apply(frames, [draw])[0] != 0).any(-1)
    assert (place.any(0) == place.all(0)).float().mean() > 0.99 and 0.01 < place[0].float().mean() < 0.4
    assert torch.equal(frames, torch.zeros_like(frames))  # the given clip is untouched


@pytest.fixture
def clips(media):
    names = ["good_mp4", "good_mpg", "short_mp4", "slow_mp4", "fast_mp4", "odd_size_mp4", "short_sound_mp4", "click_mp4"]
    return [Clip(i, media[n], label="ab"[i % 2]) for i, n in enumerate(names)]


@pytest.mark.parametrize("purpose", ["pretrain", "train", "evaluate"])
def test_shapes(purpose, clips):
    dataset = ClipDataset(clips, TINY, DataConfig(), purpose, target=Classification(("a", "b")).target)
    batch = preprocess(dataset.batch([(0, i) for i in range(3)]), TINY)
    views = 4 if purpose == "evaluate" else 1
    assert batch.video.shape == (3 * views, 16, 64, 64, 3) and batch.video.dtype == torch.uint8
    assert batch.audio.shape == (3 * views, 1, 256, 128) and batch.labels.tolist() == [0, 1, 0] and batch.views == views


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_the_workers(workers, clips):
    def run(count):
        dataset = PretrainDataset(clips, TINY, DataConfig(), "pretrain", seed=5)
        batches = loader(dataset, BatchSampler(len(clips), 4, 2, seed=5).micro_batches(0, 3), count)
        return [preprocess(batch, TINY) for batch in batches]

    for a, b in zip(run(workers), run(0), strict=True):
        assert a.clips == b.clips and torch.equal(a.video, b.video) and torch.equal(a.audio, b.audio)
        assert torch.equal(a.masks.video.visible, b.masks.video.visible)


def test_processes_share_out_what_one_would_do():
    alone = BatchSampler(23, 8, 8, seed=1)
    for step in range(5):
        (whole,) = alone.micro_batches(step, step + 1)
        parts = [list(BatchSampler(23, 8, 2, rank, 2, seed=1).micro_batches(step, step + 1)) for rank in range(2)]
        assert sorted(i for rank in parts for micro in rank for i in micro) == sorted(whole)
    epoch = [i for step in range(2) for _, i in next(alone.micro_batches(step, step + 1))]
    assert len(set(epoch)) == 16  # without repeats
    assert len(next(BatchSampler(3, 8, 8).micro_batches(0, 1))) == 8  # a short list goes round


def test_samplers_fit_any_number_of_processes():
    assert BatchSampler.fit(10_000, 984, 164, world=6).accumulation == 1
    assert BatchSampler.fit(10_000, 984, 164, world=8).micro_batch == 123
    assert BatchSampler.fit(10_000, 984, 164, world=1).accumulation == 6
    with pytest.raises(ValueError, match="984 clips do not share out over 5"):
        BatchSampler.fit(10_000, 984, 164, world=5)


def test_class_balance_draws_classes_equally():
    sampler = BatchSampler(100, 100, 100, weights=np.array([1 / 90] * 90 + [1 / 10] * 10))
    drawn = np.concatenate([sampler.order(e) for e in range(50)])
    assert 0.45 < (drawn >= 90).mean() < 0.55


def test_a_bad_clip_is_replaced_whole_and_always_by_the_same(clips, media):
    bad = [*clips, Clip(8, media["truncated_mp4"]), Clip(9, media["silent_mp4"])]
    for position in (8, 9):
        found = []
        for _ in range(2):
            dataset = ClipDataset(bad, TINY, DataConfig(), "pretrain", seed=2)
            sample, set_aside = dataset[(4, position)]
            found.append((sample.clip.id, [b.id for b in set_aside]))
            again = ClipDataset(bad, TINY, DataConfig(), "pretrain", seed=2).read(sample.clip, 4)
            assert np.array_equal(sample.windows, again.windows) and sample.boxes == again.boxes
            assert np.array_equal(sample.sounds, again.sounds)  # picture and sound of one clip
        assert found[0] == found[1] and found[0][0] not in (8, 9) and found[0][1][0] == position
    assert "no audio track" in set_aside[0].reason


@pytest.mark.parametrize(
    "kind", [{}, {"shards": np.arange(100) // 5}, {"weights": np.linspace(1, 2, 100)}], ids=lambda k: str([*k])
)
def test_an_epoch_is_ordered_once(kind, monkeypatch):
    """Asked for a step at a time, or for all steps at once: the same, but the order of 100 clips is made once an epoch."""
    apart = [next(BatchSampler(100, 10, 5, seed=2, **kind).micro_batches(step, step + 1)) for step in range(20)]
    made, order = [], BatchSampler.order
    monkeypatch.setattr(BatchSampler, "order", lambda self, epoch: made.append(epoch) or order(self, epoch))
    assert list(BatchSampler(100, 10, 5, seed=2, **kind).micro_batches(0, 20))[::2] == apart and made == [0, 1]


def test_silence_is_an_option(media):
    dataset = ClipDataset([Clip(0, media["silent_mp4"])], TINY, DataConfig(missing_audio="silence"), "evaluate")
    assert not np.any(dataset[(0, 0)][0].sounds)


def test_sound_alone_serves_a_model_that_listens_only(media):
    clips = [Clip(0, media["sound_wav"])]
    batch = preprocess(ClipDataset(clips, TINY, DataConfig(), "evaluate", modalities=("audio",)).batch([(0, 0)]), TINY)
    assert batch.clips == [0] and batch.video is None and batch.audio.shape == (4, 1, 256, 128) and batch.bad == []
    assert "has no video track" in ClipDataset(clips, TINY, DataConfig(), "evaluate")[(0, 0)][1][0].reason


def test_evaluation_leaves_bad_clips_out(clips, media):
    dataset = ClipDataset([clips[0], Clip(1, media["empty_mp4"])], TINY, DataConfig(), "evaluate")
    batch = dataset.batch([(0, 0), (0, 1)])
    assert batch.clips == [0] and [b.id for b in batch.bad] == [1]
    assert dataset.batch([(0, 1)]).clips == []


def test_nothing_readable_gives_nothing(media):
    dataset = PretrainDataset([Clip(0, media["empty_mp4"])], TINY, DataConfig(), "pretrain")
    batch = dataset.batch([(0, 0)])
    assert batch.clips == [] and "is empty" in batch.bad[0].reason


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_manifests_come_back(suffix, tmp_path):
    clips = [Clip(0, str(tmp_path / "a b.mp4"), start=0.5, end=2.0, label="x", subject="7", face=(1.0, 2.0, 3.0, 4.0)),
             Clip(1, "/elsewhere/c.mp4", audio_path=str(tmp_path / "c.wav"), split="test", dataset="d")]  # fmt: skip
    write_manifest(tmp_path / f"m.{suffix}", clips)
    assert read_manifest(tmp_path / f"m.{suffix}") == clips


def test_released_lists(tmp_path):
    path = tmp_path / "list.csv"
    for text, want in (
        ("/v/a.mp4 0\n/v/b.mp4 0\n", [Clip(0, "/v/a.mp4", label="0"), Clip(1, "/v/b.mp4", label="0")]),
        ("/f/a /w/a.wav 3\n", [Clip(0, "/f/a", "/w/a.wav", label="3")]),
        ("/f/a /w/a.wav 0.5 -1 2\n", [Clip(0, "/f/a", "/w/a.wav", label="0.5 -1 2")]),
        ("/f/a 0.5 -1 2\n", [Clip(0, "/f/a", label="0.5 -1 2")]),
    ):
        path.write_text(text)
        assert read_manifest(path) == read_released_list(path) == want


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("file,label\na.mp4,1\n", "column 'path' is missing; it has file, label"),
        ("path,start\na.mp4,soon\n", "row 1: start is 'soon'"),
        ("path,label\n,1\n", "row 1: path is empty"),
        ("path\n", "holds no clips"),
        ("", "holds no clips"),
        (b"\xff\xfe\x00", "no readable CSV"),
    ],
    ids=["column", "number", "path", "header", "empty", "binary"],
)
def test_bad_manifests_are_named(text, words, tmp_path):
    path = tmp_path / "m.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=words) as caught:
        read_manifest(path)
    assert str(path) in str(caught.value)
    with pytest.raises(FileNotFoundError, match="no such manifest"):
        read_manifest(tmp_path / "other.csv")


def test_face_boxes_are_used(media):
    clip = Clip(0, media["odd_size_mp4"])
    whole, face = (
        preprocess(ClipDataset([c], TINY, DataConfig(), "evaluate").batch([(0, 0)]), TINY).video
        for c in (clip, replace(clip, face=(100.0, 10.0, 20.0, 20.0)))
    )
    assert not torch.equal(whole, face)
