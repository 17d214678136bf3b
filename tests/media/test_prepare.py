"""From raw videos to a prepared set: nothing lost in silence, the same bytes whatever happens on the way, sound on its
picture."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from media_files import RATE
from processes import environment
from streams import delay_picture

from avfmae.data import faces, prepare
from avfmae.data.clip import Clip
from avfmae.data.faces import Face, Track
from avfmae.data.manifest import read_columns, read_manifest, write_manifest
from avfmae.data.prepare import Failure, PrepareConfig, prepare_clip
from avfmae.data.sources import open_clip
from avfmae.datasets.drawn import encode

pytestmark = pytest.mark.slow

GOOD = ["good_mp4", "good_mkv", "good_flv", "good_mpg", "good_avi", "odd_size_mp4", "fast_mp4", "ntsc_mp4", "telephone_avi"]
BAD = {"empty_mp4": "is empty", "truncated_mp4": "no readable media", "text_mp4": "no readable media", "missing": "no such file",
       "sound_wav": "has no video track"}  # fmt: skip


def settings(source, out, **changes):
    return PrepareConfig(
        Path(source), Path(out), **{"detector": "precropped", "size": 64, "workers": 2, "shard_clips": 3} | changes
    )


def rows_of(manifest):
    with open(manifest, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def source(media, tmp_path_factory):
    """A manifest of good, bad, silent and short clips, with labels."""
    names = [*GOOD, *BAD, "silent_mp4", "short_mp4"]
    path = tmp_path_factory.mktemp("source") / "clips.csv"
    write_manifest(path, [Clip(i, media[n], label=f"l{i % 3}", subject=str(i), split="train") for i, n in enumerate(names)])
    return path


@pytest.fixture(scope="module")
def prepared(source, tmp_path_factory):
    return prepare.prepare(settings(source, tmp_path_factory.mktemp("prepared")))


def test_every_clip_is_kept_or_set_aside_with_its_reason(source, prepared, media):
    rows, aside = rows_of(prepared), rows_of(prepared.parent / "set_aside.csv")
    wanted = {media[n] for n in [*GOOD, "silent_mp4", "short_mp4"]}
    assert {row["source"] for row in rows} == wanted and {row["source"] for row in aside} == {media[n] for n in BAD}
    for name, words in BAD.items():
        assert words in next(row["reason"] for row in aside if row["source"] == media[name])
    flags = {Path(row["source"]).name: row["flags"] for row in rows}
    assert flags["silent.mp4"] == "no-audio" and "no-audio" not in flags["good.mp4"]
    clips, before = read_manifest(prepared), read_manifest(source)
    assert [(c.label, c.subject, c.split) for c in clips] == [(c.label, c.subject, c.split) for c in before if c.path in wanted]
    for row, clip in zip(rows, clips, strict=True):
        info = open_clip(clip.path).info
        assert len(info.times) == int(row["frames"]) == len(open_clip(row["source"]).info.times)
        assert open_clip(clip.path).frames([0, len(info.times) - 1]).shape == (2, 64, 64, 3)
        assert info.has_audio == bool(int(row["has_audio"]))


@pytest.mark.parametrize(
    ("keep", "lost"), [((), {"silent.mp4", "short.mp4"}), (("short",), {"silent.mp4"}), (("no-audio", "short"), set())]
)
def test_what_is_kept_is_an_option(keep, lost, media, tmp_path):
    write_manifest(tmp_path / "m.csv", [Clip(i, media[n]) for i, n in enumerate(("good_mp4", "silent_mp4", "short_mp4"))])
    run = settings(tmp_path / "m.csv", tmp_path / "out", keep=keep, min_frames=30)
    rows = rows_of(prepare.prepare(run))
    assert {"good.mp4", "silent.mp4", "short.mp4"} - {Path(row["source"]).name for row in rows} == lost
    reasons = {Path(row["source"]).name: row["reason"] for row in rows_of(tmp_path / "out" / "set_aside.csv")}
    assert set(reasons) == lost and all("would keep it" in reason for reason in reasons.values())


@pytest.mark.parametrize("name", ["click_mp4", "click_mpg", "click_mkv_late"])
def test_sound_stays_on_its_picture(name, media, tmp_path):
    """A click 1.5 s into the file is heard as long after the first frame as in the source, within 10 ms."""
    path = media.get(name)
    if path is None:  # the picture begins 0.4 s after the sound
        path = str(tmp_path / "late.mkv")
        delay_picture(media["click_mp4"], path, 0.4)
    sample = prepare_clip(Clip(0, path), settings(path, tmp_path))
    first = sample.row["source_start"]
    pcm = np.frombuffer(sample.sound[44:], "<i2") / 32768
    heard = np.flatnonzero(np.abs(pcm) > 0.1)[0] / 16_000
    source = open_clip(path)
    whole = source.sound(source.info.start, 3.0)
    in_source = source.info.start + np.flatnonzero(np.abs(whole) > 0.1)[0] / 16_000
    assert abs(heard - (in_source - first)) < 0.010
    if name == "click_mkv_late":
        assert first - source.info.start == pytest.approx(0.4, abs=0.05)


def test_columns_of_ones_own_are_kept(media, tmp_path):
    """Each with its clip's row, whatever is set aside; the set's own facts have their names for themselves."""
    lines = ["path,label,age,mood ,,fps", *(f"{media[n]},{said},1,7" for n, said in (
        ("good_mp4", "a,30,x"), ("text_mp4", "a,40,y"), ("good_mkv", "b,,z"),
    ))]  # fmt: skip
    text = "\n".join(lines)
    (tmp_path / "clips.csv").write_text(text)
    manifest = prepare.prepare(settings(tmp_path / "clips.csv", tmp_path / "set", shard_clips=2))
    rows = rows_of(manifest)
    assert [(row["label"], row["age"], row["mood"]) for row in rows] == [("a", "30", "x"), ("b", "", "z")]
    assert all(float(row["fps"]) == 25 and "" not in row for row in rows)
    assert read_columns(manifest, ["age", "mood"]) == {"age": ["30", None], "mood": ["x", "z"]}
    (tmp_path / "clips.csv").write_text(text.replace("30", "31"))  # not of what the shards were made of
    assert rows_of(prepare.prepare(settings(tmp_path / "clips.csv", tmp_path / "set", shard_clips=2)))[0]["age"] == "31"


def test_segments_of_a_file_become_clips(media, tmp_path):
    write_manifest(tmp_path / "m.csv", [Clip(0, media["good_mp4"], start=0.4, end=1.6), Clip(1, media["good_mp4"], start=99.0)])
    (row,) = rows_of(prepare.prepare(settings(tmp_path / "m.csv", tmp_path / "out")))
    assert (row["frames"], float(row["source_start"])) == ("30", 0.4)
    (aside,) = rows_of(tmp_path / "out" / "set_aside.csv")
    assert "has no frames between 99" in aside["reason"]


def contents(folder):
    return {p.name: p.read_bytes() for p in Path(folder).iterdir() if p.name != ".lock"}


@pytest.mark.exhaustive
def test_a_killed_run_ends_with_the_bytes_of_an_unbroken_one(source, prepared, tmp_path):
    """SIGKILL as soon as there is one shard, and four; each time the same command again."""
    command = [sys.executable, "-m", "avfmae", "prepare", str(source), "--out", str(tmp_path / "out"), "--detector", "precropped",
               "--size", "64", "--workers", "2", "--shard-clips", "3"]  # fmt: skip
    left = []
    for shards in (1, 4):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True, env=environment())
        while process.poll() is None and not (
            (tmp_path / "out").exists() and len(list((tmp_path / "out").glob("*.index"))) >= shards
        ):
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        left.append(len(list((tmp_path / "out").glob("*.index"))))
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL, env=environment())
    want = contents(prepared.parent)
    got = contents(tmp_path / "out")
    assert {n: len(b) for n, b in got.items()} == {n: len(b) for n, b in want.items()} and got == want
    assert left[0] < 6 and left[1] < 6  # it really was broken off


def test_what_is_damaged_gone_or_made_of_other_files_is_made_anew(media, tmp_path, capsys):
    """And that alone; in the end the bytes are those of a set that is made at once."""
    for number in range(5):
        shutil.copy(media["good_mp4"], tmp_path / f"{number}.mp4")
    (tmp_path / "5.mp4").write_bytes(b"")
    write_manifest(tmp_path / "m.csv", [Clip(i, str(tmp_path / f"{i}.mp4")) for i in range(6)])
    run = settings(tmp_path / "m.csv", tmp_path / "set", shard_clips=1, min_frames=4)
    prepare.prepare(run)
    cut, gone, index = (tmp_path / "set" / name for name in ("000000.tar", "000001.tar", "000002.index"))
    flipped = bytearray(cut.read_bytes())
    flipped[len(flipped) // 2] ^= 1
    cut.write_bytes(flipped)
    gone.unlink()
    index.write_bytes(index.read_bytes()[:-50])
    shutil.copy(media["odd_size_mp4"], tmp_path / "3.mp4")
    os.utime(tmp_path / "3.mp4", (1, 1))
    os.utime(tmp_path / "4.mp4")  # touched, but the same
    shutil.copy(media["good_mp4"], tmp_path / "5.mp4")
    kept = (tmp_path / "set" / "000004.tar").stat().st_mtime_ns
    capsys.readouterr()
    prepare.prepare(run)
    assert "6 of 6 shards are there already; 5 of these are damaged" in " ".join(capsys.readouterr().err.split())
    assert (tmp_path / "set" / "000004.tar").stat().st_mtime_ns == kept
    prepare.prepare(settings(tmp_path / "m.csv", tmp_path / "other", shard_clips=1, min_frames=4))
    assert contents(tmp_path / "set") == contents(tmp_path / "other") and rows_of(tmp_path / "set" / "set_aside.csv") == []


def test_a_folder_of_another_set_is_refused(source, prepared):
    with pytest.raises(ValueError, match=r"holds a set prepared otherwise \(size 64, now 96"):
        prepare.prepare(settings(source, prepared.parent, size=96))


def test_wrong_sources_are_named(tmp_path):
    with pytest.raises(ValueError, match="holds no videos"):
        prepare.prepare(settings(tmp_path, tmp_path / "out"))
    with pytest.raises(FileNotFoundError, match="no such manifest"):
        prepare.prepare(settings(tmp_path / "none.csv", tmp_path / "out"))
    (tmp_path / "a.mp4").write_bytes(b"")
    with pytest.raises(ValueError, match="needs its model"):
        prepare.prepare(settings(tmp_path, tmp_path / "out", detector="yunet"))
    with pytest.raises(FileNotFoundError, match="no such YuNet model"):
        prepare.prepare(settings(tmp_path, tmp_path / "out", detector="yunet", yunet=tmp_path / "yunet.onnx"))
    with pytest.raises(ValueError, match="1 clips have no face box"):
        prepare.prepare(settings(tmp_path, tmp_path / "out", detector="manifest"))
    with pytest.raises(ValueError, match="size: got 63, expected an even number"):
        settings(tmp_path, tmp_path / "out", size=63)


@pytest.mark.exhaustive
def test_ray_gives_the_same_bytes(source, prepared, tmp_path):
    pytest.importorskip("ray")
    prepare.prepare(settings(source, tmp_path / "out", engine="ray"))
    assert contents(tmp_path / "out") == contents(prepared.parent)


@pytest.mark.exhaustive
def test_on_ray_a_clip_s_time_begins_with_its_work():
    """One core, and clips of two seconds each: the third waits for four, and may take three."""
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=1, log_to_driver=False, include_dashboard=False)
    try:

        @ray.remote(num_cpus=1, num_returns="streaming")
        def work(seconds):
            yield None
            time.sleep(seconds)
            yield seconds

        waiting = [work.remote(seconds) for seconds in (2, 2, 2, 60)]
        found = [prepare._fetch(ray, Clip(0, "a.mp4"), answers, 3.0) for answers in waiting]
    finally:
        ray.shutdown()
    assert found == [2, 2, 2, Failure("takes longer than 3 s")]


def test_damaged_files_are_set_aside_and_never_crash(media, tmp_path):
    """A hundred mutations of real files: cut, flipped, overwritten headers, nothing, claims of huge pictures."""
    rng = np.random.default_rng(0)
    kinds = Counter()
    for k in range(100):
        name = GOOD[k % 6]
        data = bytearray(Path(media[name]).read_bytes())
        kind = ("cut", "flip", "header", "empty", "swap", "noise")[k % 6]
        if kind == "cut":
            data = data[: rng.integers(1, len(data))]
        elif kind == "flip":
            for at in rng.integers(0, len(data), 40):
                data[at] ^= 1 << rng.integers(8)
        elif kind == "header":
            data[: rng.integers(4, 64)] = rng.bytes(int(rng.integers(4, 64)))
        elif kind == "empty":
            data = bytearray()
        elif kind == "swap":
            a, b = sorted(rng.integers(0, len(data), 2))
            data[a:b] = data[a:b][::-1]
        else:
            data[len(data) // 2 :] = rng.bytes(len(data) - len(data) // 2)
        kinds[kind] += 1
        (tmp_path / f"{k:03d}-{kind}{Path(media[name]).suffix}").write_bytes(data)
    manifest = prepare.prepare(settings(tmp_path, tmp_path / "out", time_limit=20, shard_clips=50))
    rows, aside = rows_of(manifest), rows_of(manifest.parent / "set_aside.csv")
    assert len(rows) + len(aside) == 100 and all(row["reason"] for row in aside)
    assert sum("-empty" in row["source"] for row in aside) == kinds["empty"]
    for row in rows:  # what was kept can be read
        clip = f"{manifest.parent}/{row['path']}"
        open_clip(clip).frames(range(min(16, int(row["frames"]))))


# Faces


def moving(frames, start, step, side=40.0, every=5):
    return Track({n: Face((start + step * n, 50.0, side, side), 1.0) for n in range(0, frames, every)})


def test_detections_are_linked_and_the_right_face_is_chosen():
    def find(frame):
        number = int(frame[0, 0, 0])
        found = [Face((10.0 + number, 20, 60, 60), 1.0)]
        if number % 10 == 0:
            found.append(Face((150.0, 30, 90, 90), 1.0))  # larger, seen half as often
        if number == 15:
            found.append(Face((300.0, 5, 200, 200), 1.0))  # a false alarm
        return found

    def detector(frames):
        return [find(frame) for frame in frames]

    frames = (np.full((240, 520, 3), n, np.uint8) for n in range(50))
    tracks = faces.find_tracks(frames, detector, 5)
    assert sorted(len(t.faces) for t in tracks) == [1, 5, 10]
    assert faces.choose(tracks, "persistent").box()[2] == 60 and faces.choose(tracks, "largest").box()[2] == 90
    assert faces.choose([], "largest") is None


def test_detection_on_large_frames_is_in_their_own_pixels():
    seen = []

    def detector(frames):
        seen.extend(frame.shape for frame in frames)
        return [[Face((10.0, 20.0, 30.0, 40.0), 1.0, np.ones((5, 2)))] for _ in frames]

    (track,) = faces.find_tracks(iter([np.zeros((720, 1280, 3), np.uint8)]), detector, 1)
    assert seen == [(360, 640, 3)] and track.box() == (20, 40, 60, 80) and (track.faces[0].landmarks == 2).all()


def test_crops_stand_still_or_follow_smoothly():
    still = faces.smooth_squares(moving(100, 20, 1.0), 100, 0.3, follow=False)
    assert (still == still[0]).all() and still[0, 2] == pytest.approx(64)
    follow = faces.smooth_squares(moving(100, 20, 1.0), 100, 0.3, follow=True)
    assert np.allclose(np.diff(follow[20:75, 0]), 1.0, atol=1e-6) and (follow[:, 2] == follow[0, 2]).all()
    jitter = moving(100, 20, 0.0)
    jitter.faces = {n: Face((20 + 5 * (-1) ** (n // 5), *f.box[1:]), 1.0) for n, f in jitter.faces.items()}
    assert np.ptp(faces.smooth_squares(jitter, 100, 0.3, follow=True)[20:80, 0]) < 1.5


@pytest.mark.parametrize("scale", [0.7, 1.0, 1.9, 3.4])
def test_a_square_is_cut_where_it_is(scale):
    """A bright spot at a known place of the square lands at that place of the crop."""
    side = 64 * scale
    frame = np.zeros((300, 400, 3), np.uint8)
    x, y = 200 + side / 4, 150 - side / 8
    frame[round(y - 4 * scale) : round(y + 4 * scale), round(x - 4 * scale) : round(x + 4 * scale)] = 250
    (to_frame,) = faces.square_warps(np.array([[200.0, 150.0, side]]), (300, 400), 64)
    crop = faces.warp(frame, to_frame, 64)[..., 0].astype(float)
    spot = np.array([(crop * g).sum() / crop.sum() + 0.5 for g in np.indices(crop.shape)])
    assert np.abs(spot - (32 - 8, 32 + 16)).max() < 0.5 and crop.max() > 200
    (inside,) = faces.square_warps(np.array([[5.0, 5.0, side]]), (300, 400), 64)
    assert (inside[:, 2] == 0).all()  # moved inside the frame


def test_landmarks_are_brought_to_the_template():
    turn = np.radians(25)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    landmarks = faces.TEMPLATE @ (80 * rotation).T + (120, 60)
    track = Track({0: Face((0, 0, 9, 9), 1.0, landmarks), 10: Face((0, 0, 9, 9), 1.0, landmarks + 10)})
    warps = list(faces.landmark_warps(track, 11, 100, 0.3))
    places = ((faces.TEMPLATE - 0.5) / 1.6 + 0.5) * 100
    for number, warp in enumerate(warps):
        assert np.allclose(places @ warp[:, :2].T + warp[:, 2], landmarks + number)


def test_the_face_is_found_cropped_and_written_down(tmp_path, monkeypatch):
    frames = np.full((60, 120, 200, 3), 30, np.uint8)
    frames[:, 40:80, 100:140] = 220
    encode(tmp_path / "a.mp4", frames, 0.1 * np.random.default_rng(0).standard_normal(round(RATE * 2.4)), rate=RATE)
    found = [Face((100.0, 40, 40, 40), 1.0)]
    monkeypatch.setattr(faces, "make_detector", lambda *_: lambda frames: [found if f.max() > 200 else [] for f in frames])
    run = settings(tmp_path, tmp_path / "out", detector="haar", margin=0.5)
    sample = prepare_clip(Clip(0, str(tmp_path / "a.mp4")), run)
    row = sample.row
    assert [row[f"face_{c}"] for c in "xywh"] == [100, 40, 40, 40] and row["face_share"] == 1 and row["flags"] == ""
    encode(tmp_path / "b.mp4", frames // 2, None)
    lost = prepare_clip(Clip(1, str(tmp_path / "b.mp4")), run)
    assert lost == Failure("no face is found in it (keep = no-face would keep it)")
    kept = prepare_clip(
        Clip(1, str(tmp_path / "b.mp4")), settings(tmp_path, tmp_path / "out", detector="haar", keep=("no-face", "no-audio"))
    )
    assert kept.row["flags"] == "no-face no-audio" and kept.row["face_x"] is None


def test_haar_finds_a_face():
    """A frame of the drawn set in which it does: the cascade is installed and is asked rightly."""
    from avfmae.datasets.drawn import FACE, Identity, face

    detector, found = faces.HaarDetector(), []
    for person in range(12):
        who = Identity.draw(np.random.Generator(np.random.Philox(key=[0, person])))
        pose = {"light": 1.0, "scale": 1.0, "tilt": 0.0, "x": 0.0, "y": 0.0, "lids": 1.0, "gaze": 0.0}
        frame = np.asarray(face(who, pose, (0.1, 0.03, 0.03, 0.0, 0.0), 0.0))
        found += [faces.iou(f.box, FACE) for f in detector([frame])[0]]
    assert len(found) >= 2 and max(found) > 0.5


def test_the_settings_are_kept_with_the_set(prepared):
    kept = json.loads((prepared.parent / "prepare.json").read_text())
    assert kept["size"] == 64 and "workers" not in kept
