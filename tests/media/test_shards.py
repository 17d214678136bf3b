"""The stored format: every frame is what decoding in order gives, few packets are needed, and any tool reads it."""

import errno
import gc
import hashlib
import io
import shutil
import tarfile
from pathlib import Path

import av
import cv2
import numpy as np
import psutil
import pytest
import webdataset

from avfmae.config import ModelConfig
from avfmae.data import shards
from avfmae.data.clip import Clip
from avfmae.data.config import DataConfig
from avfmae.data.dataset import ClipDataset
from avfmae.data.manifest import read_manifest
from avfmae.data.preprocess import preprocess
from avfmae.data.sources import MediaError, open_clip, prepared


def talking(count, size=96, seed=0):
    """Frames with what a face has: a smooth picture that sways, and a mouth that opens and closes."""
    rng = np.random.default_rng(seed)
    picture = cv2.resize(
        rng.uniform(40, 220, (9, 9, 3)).astype(np.float32), (size + 16, size + 16), interpolation=cv2.INTER_CUBIC
    )
    picture += cv2.GaussianBlur(rng.normal(0, 12, picture.shape).astype(np.float32), (0, 0), 1.5)
    for i in range(count):
        shift = np.array([[1, 0, 6 * np.sin(i / 17)], [0, 1, 4 * np.cos(i / 23)]], np.float32)
        frame = cv2.warpAffine(picture, shift, (size + 16, size + 16), borderMode=cv2.BORDER_REPLICATE)
        cv2.ellipse(
            frame, (size // 2, 3 * size // 4), (size // 6, 1 + int(size / 14 * abs(np.sin(i / 3)))), 0, 0, 360, (90, 30, 40), -1
        )
        yield frame[8:-8, 8:-8].clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A shard of three clips: 8 s, few frames, and one without sound at an uneven rate. Gives its folder and its samples."""
    folder = tmp_path_factory.mktemp("set")
    rng, samples = np.random.default_rng(0), []
    uneven = np.concatenate([[0], np.cumsum(rng.uniform(0.02, 0.06, 89))])
    for key, times, sound in (("long", np.arange(200) / 25, 8.0), ("short", np.arange(9) / 25, 0.36), ("uneven", uneven, None)):
        video = shards.encode_video(talking(len(times)), times, (96, 96))
        wav = None if sound is None else shards.encode_sound(0.3 * rng.standard_normal(round(sound * 16_000)))
        samples.append(shards.Sample({"key": key, "fps": 25, "label": "x"}, video, wav))
    shards.write_shard(folder / "000000.tar", samples)
    return folder, {s.row["key"]: s for s in samples}, {"uneven": uneven}


def in_order(video: bytes) -> np.ndarray:
    """All frames, decoded one after the other."""
    with av.open(io.BytesIO(video)) as container:
        return np.stack([cv2.cvtColor(f.to_ndarray(), cv2.COLOR_YUV2RGB_I420) for f in container.decode(video=0)])


@pytest.mark.parametrize("key", ["long", "short", "uneven"])
def test_any_frames_are_those_of_decoding_in_order(stored, key):
    folder, samples, _ = stored
    path, every = f"{folder}/000000.tar/{key}", in_order(samples[key].video)
    count, rng = len(every), np.random.default_rng(1)
    assert len(open_clip(path).info.times) == count
    for stride in (1, 2, 3, 4, 5, 8, 50):
        for first in range(0, count, 3):
            wanted = np.minimum(first + stride * np.arange(16), count - 1)
            assert np.array_equal(open_clip(path).frames(wanted), every[wanted])
    for _ in range(20):
        wanted = np.sort(rng.choice(count, min(count, rng.integers(1, 20)), replace=False))
        assert np.array_equal(open_clip(path).frames(wanted), every[wanted])


def test_a_window_decodes_little_more_than_its_frames(stored, monkeypatch):
    """At stride 4: 16 or 17 of the chain, those from the last key frame on (7 at most), 16 beside the chain, and the last frame
    before each of two key frames, on which the chain ends."""
    packets = []
    monkeypatch.setattr(prepared.av, "Packet", lambda data, make=av.Packet: packets.append(1) or make(data))
    counts = []
    for first in range(136):
        packets.clear()
        open_clip(f"{stored[0]}/000000.tar/long").frames(first + 4 * np.arange(16))
        counts.append(len(packets))
    assert max(counts) <= 16 + 1 + 7 + 16 + 2 and np.mean(counts) < 34
    with av.open(io.BytesIO(stored[1]["long"].video)) as container:  # an ordinary stream
        assert [s.type for s in container.streams] == ["video"] and container.streams.video[0].frames == 200


def test_times_and_sound_come_back(stored):
    folder, _, times = stored
    path = f"{folder}/000000.tar/uneven"
    assert np.abs(open_clip(path).info.times - times["uneven"]).max() < 2e-5 and not open_clip(path).info.has_audio
    with pytest.raises(MediaError, match="has no audio track"):
        open_clip(path).sound(0, 1)
    with tarfile.open(folder / "000000.tar") as tar:
        pcm = np.frombuffer(tar.extractfile("long.wav").read()[44:], "<i2")
    assert np.array_equal(open_clip(f"{folder}/000000.tar/long").sound(1.0, 2.5), pcm[16_000:40_000] / np.float32(32768))
    assert len(open_clip(f"{folder}/000000.tar/long").sound(7.5, 10.0)) == 8_000
    assert len(open_clip(f"{folder}/000000.tar/long").sound(9.0, 10.0)) == 0


def test_webdataset_reads_it(stored):
    found = list(webdataset.WebDataset(str(stored[0] / "000000.tar"), shardshuffle=False))
    assert [f["__key__"] for f in found] == ["long", "short", "uneven"]
    assert found[0]["mp4"] == stored[1]["long"].video and found[0]["wav"] == stored[1]["long"].sound and "wav" not in found[2]


def test_a_url_serves_as_well_as_a_folder(stored):
    import fsspec

    memory = fsspec.filesystem("memory")
    for file in stored[0].iterdir():
        memory.pipe(f"/set/{file.name}", file.read_bytes())
    for key in stored[1]:
        here, there = f"{stored[0]}/000000.tar/{key}", f"memory://set/000000.tar/{key}"
        wanted = np.minimum(3 * np.arange(9), len(open_clip(here).info.times) - 1)
        assert np.array_equal(open_clip(here).frames(wanted), open_clip(there).frames(wanted))
    assert np.array_equal(
        open_clip(f"{stored[0]}/000000.tar/long").sound(1, 2), open_clip("memory://set/000000.tar/long").sound(1, 2)
    )
    memory.pipe("/set/manifest.csv", b"path,label\n000000.tar/long,joy\nmemory://set/000000.tar/short,\n")
    for place in ("memory://set/manifest.csv", Path("memory://set/manifest.csv")):  # a Path has lost a slash
        clips = read_manifest(place)
        assert [c.path for c in clips] == [f"memory://set/000000.tar/{key}" for key in ("long", "short")]
        assert all(len(open_clip(c.path).info.times) for c in clips)
    with pytest.raises(FileNotFoundError, match=r"memory://nowhere/m\.csv: cannot be opened"):
        read_manifest("memory://nowhere/m.csv")


@pytest.mark.slow
def test_size_and_quality_are_those_of_an_ordinary_encode():
    frames = list(talking(200, 176))

    def quality(video):
        return 10 * np.log10(255**2 / np.square(in_order(video).astype(float) - np.stack(frames)).mean())

    def ordinary(crf):
        file = io.BytesIO()
        with av.open(file, "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.height = stream.width = 176
            stream.pix_fmt, stream.options = "yuv420p", {"crf": str(crf)}
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
        return file.getvalue()

    ours = shards.encode_video(frames, np.arange(200) / 25, (176, 176))
    equal = next(v for v in map(ordinary, range(26, 10, -1)) if quality(v) >= quality(ours) - 0.02)
    assert len(ours) <= 1.5 * len(equal)


def test_encoding_gives_the_same_bytes_every_time():
    assert len({shards.encode_video(talking(80, 96), np.arange(80) / 25, (96, 96)) for _ in range(12)}) == 1


def test_clips_of_a_set_are_trained_on_like_files(stored):
    clips = [Clip(i, f"{stored[0]}/000000.tar/{key}", face=(1.0, 2.0, 3.0, 4.0)) for i, key in enumerate(("long", "short"))]
    dataset = ClipDataset(clips, ModelConfig.preset("tiny"), DataConfig(), "pretrain")
    raw = dataset.batch([(0, 0), (0, 1)]).raw
    assert raw.frames.shape == (2, 16, 96, 96, 3)  # whole: cropping is the kernels' work
    assert (raw.boxes[:, 2] - raw.boxes[:, 0]).min() > 60  # the source's face box is not applied once more
    batch = preprocess(dataset.batch([(0, 0), (0, 1)]), dataset.cfg)
    assert batch.video.shape == (2, 16, 64, 64, 3) and batch.audio.shape == (2, 1, 256, 128)


def test_what_is_missing_or_damaged_is_named(stored, tmp_path):
    with pytest.raises(MediaError, match="holds no such clip"):
        open_clip(f"{stored[0]}/000000.tar/other").frames([0])
    with pytest.raises(MediaError, match=r"nowhere/000000.tar: is no shard of a prepared set"):
        open_clip(f"{tmp_path}/nowhere/000000.tar/long").frames([0])
    index = (stored[0] / "000000.index").read_bytes()
    tar = (stored[0] / "000000.tar").read_bytes()
    for name, data in {"cut": index[: len(index) // 2], "empty": b"", "noise": bytes(range(256)) * 40}.items():
        (tmp_path / f"{name}.index").write_bytes(data)
        (tmp_path / f"{name}.tar").write_bytes(tar)
        with pytest.raises(MediaError, match="its index does not open"):
            open_clip(f"{tmp_path}/{name}.tar/long").frames([0])
    (tmp_path / "short.index").write_bytes(index)
    (tmp_path / "short.tar").write_bytes(tar[:30_000])
    with pytest.raises(MediaError):
        open_clip(f"{tmp_path}/short.tar/long").frames([0, 190])
    with pytest.raises(MediaError, match="is truncated"):
        open_clip(f"{tmp_path}/short.tar/long").sound(1.0, 2.0)


def test_damage_that_still_decodes_is_found_by_its_sum(stored, tmp_path):
    for file in stored[0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    key, sample = "long", stored[1]["long"]
    digests = {"video_sha256": sample.video, "sound_sha256": sample.sound}
    row = sample.row | {name: hashlib.sha256(data).hexdigest() for name, data in digests.items()}
    shards.write_shard(tmp_path / "000000.tar", [shards.Sample(row, sample.video, sample.sound)])
    clip = open_clip(f"{tmp_path}/000000.tar/{key}")
    assert clip.damaged() == []
    with open(tmp_path / "000000.tar", "r+b") as file:
        file.seek(clip.sound_at + 1000)
        file.write(b"\x55\xaa")
    assert clip.damaged() == ["sound"]


@pytest.fixture
def damaged(stored, tmp_path):
    """Flips a bit of the copied shard's file at a place, and opens its clips anew."""

    def flip(suffix: str, place: int) -> str:
        for file in stored[0].iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        data = bytearray((tmp_path / f"000000{suffix}").read_bytes())
        data[place] ^= 16
        (tmp_path / f"000000{suffix}").write_bytes(data)
        prepared.OPENED.clear()
        return f"{tmp_path}/000000.tar/long"

    return flip


def test_a_flipped_bit_of_a_frame_or_of_sound_names_shard_and_clip(stored, damaged):
    clip = open_clip(f"{stored[0]}/000000.tar/long")
    packet = int(np.flatnonzero(clip.number == 64)[0])
    path = damaged(".tar", int(clip.offset[packet] + clip.size[packet] // 2))
    with pytest.raises(MediaError, match=r"000000\.tar/long: frame 64 of 200 is not as it was stored"):
        open_clip(path).frames([64, 68])
    assert open_clip(path).frames([4, 8]).shape[0] == 2 and len(open_clip(path).sound(1, 2)) == 16_000  # the rest is whole
    path = damaged(".tar", clip.sound_at + 2 * 20_000)
    with pytest.raises(MediaError, match=r"000000\.tar/long: the sound at 1\.20 s is not as it was stored"):
        open_clip(path).sound(1.2, 1.3)
    assert np.array_equal(open_clip(path).sound(2.0, 8.0), clip.sound(2.0, 8.0)) and open_clip(path).frames([64]).shape[0] == 1


def test_a_flipped_bit_anywhere_in_an_index_is_told(stored, damaged):
    size = (stored[0] / "000000.index").stat().st_size
    for place in np.linspace(0, size - 1, 60).astype(int):
        with pytest.raises(MediaError, match="its index does not open"):
            open_clip(damaged(".index", int(place)))


def test_sets_without_checksums_are_read(stored, tmp_path):
    from safetensors import safe_open
    from safetensors.numpy import save_file

    shutil.copy(stored[0] / "000000.tar", tmp_path)
    with safe_open(stored[0] / "000000.index", "np") as file:
        old = {n: file.get_tensor(n) for n in file.keys() if "crc" not in n and n not in ("sound_blocks", "tar_sha256")}  # noqa: SIM118
        save_file(old, tmp_path / "000000.index", file.metadata())
    new, old = (open_clip(f"{folder}/000000.tar/long") for folder in (stored[0], tmp_path))
    assert np.array_equal(new.frames([5, 77]), old.frames([5, 77])) and np.array_equal(new.sound(1, 2), old.sound(1, 2))


def test_few_shards_are_kept_open(tmp_path, monkeypatch):
    """By number and by bytes; what a clip's shard was forgotten of can still be read."""
    video = shards.encode_video(talking(20, 64), np.arange(20) / 25, (64, 64))
    for number in range(12):
        shards.write_shard(tmp_path / f"{number:06d}.tar", [shards.Sample({"key": "a", "fps": 25}, video, None)])
    prepared.OPENED.clear()
    monkeypatch.setattr(prepared, "OPEN_SHARDS", 4)
    before = psutil.Process().num_fds()
    for number in [*range(12), 0]:
        assert open_clip(f"{tmp_path}/{number:06d}.tar/a").frames([3]).shape[0] == 1
    gc.collect()
    assert psutil.Process().num_fds() - before == 4
    monkeypatch.setattr(prepared, "OPEN_BYTES", 1)
    open_clip(f"{tmp_path}/000005.tar/a")
    assert len(prepared.OPENED) == 1


def test_too_many_open_files_are_no_clips_fault(tmp_path, monkeypatch):
    video = shards.encode_video(talking(20, 64), np.arange(20) / 25, (64, 64))
    shards.write_shard(tmp_path / "0.tar", [shards.Sample({"key": "a", "fps": 25}, video, None)])

    def full(*_, **__):
        raise OSError(errno.EMFILE, "Too many open files")

    prepared.OPENED.clear()
    monkeypatch.setattr("builtins.open", full)
    with pytest.raises(OSError, match="Too many open files"):
        open_clip(f"{tmp_path}/0.tar/a")
