"""Frames and sound on one clock, the same from every decoder, and every kind of broken file named."""

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from media_files import RATE, counted_frames

from avfmae.data.clip import Clip
from avfmae.data.config import SAMPLE_RATE, DataConfig
from avfmae.data.dataset import read_window_audio, sample_window
from avfmae.data.sources import MediaError, open_clip, sound
from avfmae.datasets.drawn import encode

CONTAINERS = [
    "good_mp4",
    "good_mkv",
    "good_flv",
    "good_mpg",
    "good_avi",
    "slow_mp4",
    "fast_mp4",
    "ntsc_mp4",
    "odd_size_mp4",
    "decord_fails_mp4",
]


def square(frame):
    """Where the bright square of a counted frame is: its place, which tells the frame's number."""
    blocks = frame[..., 0].astype(float)[: frame.shape[0] // 8 * 8, : frame.shape[1] // 8 * 8]
    blocks = blocks.reshape(blocks.shape[0] // 8, 8, -1, 8).mean((1, 3))
    return np.unravel_index(blocks.argmax(), blocks.shape)


@pytest.mark.parametrize("name", CONTAINERS)
def test_frame_numbers_are_right_and_the_same_in_every_decoder(name, media):
    source = open_clip(media[name])
    count = len(source.info.times)
    indices = np.array([0, 1, 2, 7, 11, 13, count // 2, count - 2, count - 1, count - 1])
    chosen, pyav = source.frames(indices), source.frames(indices, backend="pyav")
    assert np.array_equal(chosen, pyav)
    if Path(media[name]).suffix in (".mp4", ".mkv", ".flv") and name != "decord_fails_mp4":
        assert np.array_equal(source.frames(indices, backend="decord"), pyav)
    height, width = chosen.shape[1:3]
    truth = counted_frames(count, height, width)
    assert [square(f) for f in chosen] == [square(truth[i]) for i in indices]


@pytest.mark.parametrize(
    ("name", "fps", "count"), [("good_mp4", 25, 80), ("slow_mp4", 15, 48), ("fast_mp4", 100, 300), ("ntsc_mp4", 29.97, 90)]
)
def test_probe(name, fps, count, media):
    info = open_clip(media[name]).info
    assert len(info.times) == count and abs(info.fps - fps) < 0.1 and info.has_audio
    assert np.allclose(np.diff(info.times), 1 / fps, atol=2e-3)


@pytest.mark.parametrize("name", ["click_mp4", "click_mpg"])
def test_sound_and_picture_share_a_clock(name, media):
    """The burst starts at 1.5 s; whatever window it is read in, it is found there to 10 ms."""
    source = open_clip(media[name])
    zero = source.info.times[0]
    for start in (0.0, 0.7, 1.44):
        samples = source.sound(zero + start, zero + start + 2.0)
        onset = start + int((np.abs(samples) > 0.3).argmax()) / SAMPLE_RATE
        assert abs(onset - 1.5) < 0.010


def test_late_video_keeps_its_offset(tmp_path):
    """Tracks that do not begin together: the time stamps say so, and the window follows them."""
    encode(tmp_path / "a.mp4", counted_frames(75), None)
    encode(
        tmp_path / "b.mp4",
        counted_frames(4),
        np.where(np.arange(4 * RATE) >= 2 * RATE, 0.5, 0) * np.sin(np.arange(4 * RATE) / 7),
        rate=RATE,
    )
    path = str(tmp_path / "late.mkv")
    with av.open(path, "w") as out, av.open(str(tmp_path / "a.mp4")) as picture, av.open(str(tmp_path / "b.mp4")) as sound:
        video, audio = (
            out.add_stream_from_template(picture.streams.video[0]),
            out.add_stream_from_template(sound.streams.audio[0]),
        )
        for packet in picture.demux(video=0):
            if packet.dts is not None:
                shift = round(Fraction(8, 10) / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, video
                out.mux(packet)
        for packet in sound.demux(audio=0):
            if packet.dts is not None:
                packet.stream = audio
                out.mux(packet)
    info = open_clip(path).info
    assert 0.75 < info.times[0] < 0.85  # not vacuous
    window = sample_window(info, Clip(0, path), 0.0, 16, DataConfig(), spread=False)
    samples = read_window_audio(open_clip(path), window, "error")
    onset = info.times[0] + int((np.abs(samples) > 0.2).argmax()) / SAMPLE_RATE
    assert abs(onset - 2.0) < 0.03  # the tone starts at 2 s of the file, 1.2 s after the first frame


@pytest.mark.parametrize("name", ["good_mp4", "odd_size_mp4", "telephone_avi", "good_flv", "good_mpg"])
def test_any_rate_and_channels_become_16_khz_mono(name, media):
    source = open_clip(media[name])
    samples = source.sound(*(source.info.times[0] + np.array([0.3, 2.3])))
    assert abs(len(samples) - 2 * SAMPLE_RATE) <= 1 and samples.dtype == np.float32 and 0.005 < samples.std() < 0.3


def test_a_separate_sound_file_starts_with_the_video(media):
    clip = Clip(0, media["silent_mp4"], audio_path=media["sound_wav"])
    info = open_clip(clip.path).info
    window = sample_window(info, clip, 0.0, 16, DataConfig(), spread=False)
    samples = read_window_audio(open_clip(clip), window, "error")
    assert abs(int((np.abs(samples) > 0.3).argmax()) / SAMPLE_RATE - 1.5) < 0.005


def test_a_short_track_gives_what_there_is(media):
    assert 0.8 < len(open_clip(media["short_sound_mp4"]).sound(0, 2.56)) / SAMPLE_RATE < 1.0
    assert len(open_clip(media["short_sound_mp4"]).sound(2.0, 3.0)) == 0


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing", "no such file"),
        ("empty_mp4", "is empty"),
        ("truncated_mp4", "no readable media|truncated"),
        ("text_mp4", "no readable media"),
        ("truncated_flv", "truncated|breaks off"),
        ("sound_wav", "has no video track"),
    ],
)
def test_bad_files_are_named(name, reason, media):
    with pytest.raises(MediaError, match=reason) as caught:
        open_clip(media[name]).frames([0])
    assert media[name] in str(caught.value)


def test_a_truncated_file_with_its_index_in_front(media, tmp_path):
    path = tmp_path / "front.mp4"
    with av.open(media["good_mp4"]) as source, av.open(str(path), "w", options={"movflags": "faststart"}) as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.6)])
    with pytest.raises(MediaError, match=r"truncated: \d+ of 80 frames|breaks off"):
        open_clip(str(path)).frames([0])


def test_no_sound_track_is_named(media):
    with pytest.raises(MediaError, match="has no audio track"):
        open_clip(media["silent_mp4"]).sound(0, 1)


def test_frames_out_of_range(media):
    with pytest.raises(ValueError, match="expected frame numbers from 0 to 79"):
        open_clip(media["good_mp4"]).frames([80])


def test_folders_of_frames(tmp_path):
    from PIL import Image

    for i, frame in enumerate(counted_frames(20)):
        Image.fromarray(frame).save(tmp_path / f"{i:03d}.png")
    assert len(open_clip(str(tmp_path)).info.times) == 20
    assert np.array_equal(open_clip(str(tmp_path)).frames([3, 19]), counted_frames(20)[[3, 19]])
    (tmp_path / "empty").mkdir()
    with pytest.raises(MediaError, match="no frame images"):
        open_clip(str(tmp_path / "empty")).frames([0])


@pytest.mark.parametrize("rate", [44_100, 48_000, 16_000, 22_050])
def test_sound_is_the_same_wherever_decoding_begins(rate, tmp_path, monkeypatch):
    """A window far into a file is reached by a seek: its samples lie where they lie when all of the file is decoded."""
    path, t = str(tmp_path / "sweep.mp4"), np.arange(5 * rate) / rate
    encode(Path(path), counted_frames(125), 0.5 * np.sin(2 * np.pi * (200 * t + 120 * t**2)), rate=rate)
    near = [open_clip(path).sound(start, start + 0.7) for start in (1.9, 2.333, 4.01)]
    monkeypatch.setattr(sound, "SEEK_BACK", 1e9)
    for start, got in zip((1.9, 2.333, 4.01), near, strict=True):
        whole = open_clip(path).sound(start, start + 0.7)
        assert len(got) == len(whole) == 11_200 and np.abs(got - whole).max() < 2e-3


@pytest.mark.parametrize("name", ["good_mp4", "good_mkv", "ntsc_mp4", "fast_mp4"])
def test_frames_that_are_left_out_change_nothing(name, media):
    """H.264 pictures on which nothing depends are skipped, and decoding begins at a key frame: the frames are those of decoding
    all."""
    source = open_clip(media[name])
    every = np.stack(list(source.frames_between(0, len(source.info.times))))
    for first in range(0, len(every) - 30, 7):
        wanted = first + np.array([0, 4, 5, 11, 29])
        assert np.array_equal(source.frames(wanted), every[wanted])


def test_turned_telephones_are_turned_back(media, tmp_path):
    """A display matrix is obeyed, whoever decodes."""
    path = str(tmp_path / "turned.mp4")
    data = bytearray(Path(media["good_mp4"]).read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40  # version and flags, times, track, duration, layer, volume: then nine numbers of 16.16
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 64 << 16, 0, 1 << 30)
    Path(path).write_bytes(data)
    upright, turned = (open_clip(p).frames([3, 40], backend="pyav") for p in (media["good_mp4"], path))
    assert turned.shape == (2, 112, 64, 3) and np.array_equal(turned, np.rot90(upright, -1, (1, 2)))
    assert np.array_equal(open_clip(path).frames([3, 40], backend="decord"), turned)
