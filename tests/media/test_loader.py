"""What a run reads: every clip once, whoever reads it, wherever the run is broken off; and clips at which a decoder hangs or
dies."""

import os

import numpy as np
import pytest
from misbehaviour import Troubled
from test_shards import talking

from avfmae.config import ModelConfig
from avfmae.data import shards
from avfmae.data.clip import Clip
from avfmae.data.config import DataConfig
from avfmae.data.dataset import ClipDataset, PretrainDataset
from avfmae.data.loader import loader
from avfmae.data.sampler import BatchSampler
from avfmae.data.sources import MediaError, shard_numbers
from avfmae.data.sources.probing import forget

TINY = ModelConfig.preset("tiny")


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """48 clips in 6 shards of different size."""
    folder, rng, clips = tmp_path_factory.mktemp("set"), np.random.default_rng(0), []
    for number, count in enumerate((11, 5, 9, 8, 3, 12)):
        samples = []
        for _ in range(count):
            key = f"{len(clips):03d}"
            video = shards.encode_video(talking(70, 64, len(clips)), np.arange(70) / 25, (64, 64))
            samples.append(shards.Sample({"key": key, "fps": 25}, video, shards.encode_sound(0.1 * rng.standard_normal(45_000))))
            clips.append(Clip(len(clips), f"{folder}/{number:06d}.tar/{key}"))
        shards.write_shard(folder / f"{number:06d}.tar", samples)
    return clips


def plans(clips, world, total_batch=8, **rest):
    numbers = shard_numbers([c.path for c in clips])
    return [
        BatchSampler.fit(len(clips), total_batch, rest.get("micro"), rank=r, world=world, seed=3, shards=numbers, mixed_shards=4)
        for r in range(world)
    ]


def read(clips, plan, first, last, workers):
    data = PretrainDataset(clips, TINY, DataConfig(), "pretrain", seed=3)
    return list(loader(data, plan.micro_batches(first, last), workers))


@pytest.mark.slow
def test_a_run_resumed_mid_epoch_sees_what_was_not_seen(stored):
    """Two ranks with four workers each, broken off after two of six steps; resumed with two workers, and with one rank
    instead."""
    before = [b for plan in plans(stored, 2) for b in read(stored, plan, 0, 2, 4)]
    seen = [c for b in before for c in b.clips]
    assert len(set(seen)) == len(seen) == 16
    for world in (2, 1):
        after = [b for plan in plans(stored, world) for b in read(stored, plan, 2, 6, 2)]
        assert sorted(seen + [c for b in after for c in b.clips]) == list(range(48))


def test_batches_are_the_same_for_any_number_of_ranks(stored):
    steps = {
        world: [
            [
                sorted(i for m in micro for _, i in m)
                for micro in zip(*(p.micro_batches(s, s + 1) for p in plans(stored, world)), strict=True)
            ]
            for s in range(12)
        ]
        for world in (1, 2, 4, 8)
    }
    assert steps[1] == steps[2] == steps[4] == steps[8]
    assert steps[1][:6] != steps[1][6:]  # another order in the next epoch
    assert sorted(i for step in steps[1][:6] for micro in step for i in micro) == list(range(48))


def test_a_rank_keeps_to_its_shards(stored):
    """Shards are split over ranks, but for what is left over where the lanes' shards differ in size."""
    numbers = shard_numbers([c.path for c in stored])
    touched = [[set(numbers[[i for m in plan.micro_batches(0, 3) for _, i in m]])] for plan in plans(stored, 2)]
    assert not touched[0][0] & touched[1][0] and touched[0][0] | touched[1][0] <= set(range(6))


def test_lots_of_shards_are_shuffled_inside_and_outside(stored):
    first, second = (plans(stored, 1)[0].order(epoch) for epoch in (0, 1))
    assert not np.array_equal(first, second) and np.array_equal(first, plans(stored, 1)[0].order(0))
    assert np.abs(np.diff(first)).mean() > 3


def test_a_clip_at_which_a_decoder_hangs_or_dies_is_quarantined_and_replaced(stored):
    data = DataConfig(clip_seconds=2.0)
    items = [[(0, i) for i in range(k, k + 4)] for k in range(0, 16, 4)]
    batches = list(loader(Troubled(stored, TINY, data, "train", seed=1), items, 2))
    assert [len(b.clips) for b in batches] == [4] * 4
    bad = {b.id: b.reason for batch in batches for b in batch.bad}
    assert bad[5] == "takes longer than 2 s" and "crashes (SIGSEGV)" in bad[9]
    assert [c for b in batches for c in b.clips if c not in (5, 9)][:1] == [0]
    for batch, wanted in zip(batches, items, strict=True):
        assert all(c == i for c, (_, i) in zip(batch.clips, wanted, strict=True) if i not in (5, 9))


@pytest.mark.slow
def test_memory_stays_flat_and_no_file_stays_open(stored, tmp_path):
    """Good and damaged files in turns, in one process."""
    import gc

    import psutil

    for k in range(4):
        (tmp_path / f"{k}.mp4").write_bytes(
            (b"", b"nothing", shards.encode_video(talking(30, 64), np.arange(30) / 25, (64, 64))[:2000], os.urandom(3000))[k]
        )
    good = str(tmp_path / "good.mp4")
    (tmp_path / "good.mp4").write_bytes(shards.encode_video(talking(70, 64), np.arange(70) / 25, (64, 64)))
    data = ClipDataset(stored, TINY, DataConfig(missing_audio="silence"), "pretrain")
    process, sizes, refused = psutil.Process(), [], 0
    for k in range(1200):
        kinds = (stored[k % 48], Clip(k, good), Clip(k, str(tmp_path / f"{k % 4}.mp4")))
        forget()
        try:
            data.read(kinds[k % 3], k)
        except MediaError:
            refused += 1
        if k in (399, 1199):
            gc.collect()
            sizes.append(process.memory_info().rss)
            files = process.num_fds()
    assert refused == 400 and sizes[1] <= 1.05 * sizes[0]
    data.read(stored[0], 0)
    assert process.num_fds() <= files
