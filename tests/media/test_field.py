"""Files as people have them: each kind that was once read wrongly, with what a player shows and sounds."""

import io
import os
import struct
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import streams
from PIL import Image
from streams import H264, OPEN, bursts, delays, in_step, remux, shown, told, wav

from avfmae.data.clip import Clip
from avfmae.data.config import DataConfig
from avfmae.data.dataset import sample_window
from avfmae.data.sources import MediaError, find_files, open_clip, probing

# The display matrix: what is stored is turned or mirrored as the matrix says; a pixel at (x, y) is shown at (ax + cy, bx + dy).
MATRICES = {
    "mirrored": ((-1, 0, 0, 1), lambda a: a[:, ::-1]),
    "upside down": ((1, 0, 0, -1), lambda a: a[::-1]),
    "half a turn": ((-1, 0, 0, -1), lambda a: a[::-1, ::-1]),
    "clockwise": ((0, 1, -1, 0), lambda a: np.rot90(a, -1)),
    "anticlockwise": ((0, -1, 1, 0), lambda a: np.rot90(a)),
    "clockwise, mirrored": ((0, 1, 1, 0), lambda a: np.rot90(a, -1)[:, ::-1]),
    "anticlockwise, mirrored": ((0, -1, -1, 0), lambda a: np.rot90(a)[:, ::-1]),
}


@pytest.mark.parametrize("name", MATRICES)
def test_the_whole_display_matrix_is_obeyed(name, plain, tmp_path):
    (a, b, c, d), turn = MATRICES[name]
    data = bytearray(Path(plain).read_bytes())
    place = data.index(b"tkhd") + 44
    data[place : place + 36] = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    (tmp_path / "turned.mp4").write_bytes(data)
    (upright,), (turned,) = (open_clip(p).frames([9]) for p in (plain, tmp_path / "turned.mp4"))
    assert np.array_equal(turned, turn(upright))
    try:
        assert np.array_equal(open_clip(tmp_path / "turned.mp4").frames([9], backend="decord")[0], turned)
    except MediaError as error:
        assert "decord gives wrong frames" in error.reason


@pytest.mark.parametrize(("encoder", "suffix"), [("libx264", "mp4"), ("libx265", "mp4"), ("libx264", "mkv")])
def test_pixels_that_are_not_square(encoder, suffix, tmp_path):
    path = str(tmp_path / f"wide.{suffix}")
    with av.open(path, "w") as out:
        stream = out.add_stream(encoder, rate=25)
        stream.height, stream.width, stream.pix_fmt = 64, 112, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(64, 45)
        for number in range(4):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(streams.clock(number), format="rgb24")))
        out.mux(stream.encode())
    assert open_clip(path).frames([2]).shape == (1, 64, 159, 3) and shown(path) == [0, 1, 2, 3]


def test_a_rate_that_varies(tmp_path):
    """A window of picture and its sound span the same 2.56 s: 6.25 frames a second, then 25."""
    stamps = [*range(0, 80, 4), *range(80, 160)]
    streams.write(tmp_path / "vfr.mkv", *H264, count=100, stamps=stamps)
    info = open_clip(tmp_path / "vfr.mkv").info
    for position in (0.0, 0.5, 1.0):
        window = sample_window(info, Clip(0, "x"), position, 16, DataConfig(), spread=False)
        times = info.times[window.frames]
        assert window.end - window.start == pytest.approx(2.56) and np.abs(times - times[0] - np.arange(16) * 0.16).max() < 0.041


def test_stamps_that_repeat(tmp_path):
    """Every tenth frame has the stamp of the one before; frames are counted from a key frame."""

    def repeat(packet):
        packet.pts += round((3 - (packet.pts * packet.time_base * 25 % 10 == 9)) / 25 / packet.time_base)
        return packet

    streams.write(tmp_path / "silent.mp4", *H264)
    path = remux(tmp_path / "dup.mkv", str(tmp_path / "silent.mp4"), change=repeat)
    assert shown(path) == [*range(64)] and shown(path, 25, 40, 59) == [25, 40, 59]
    assert max(open_clip(path).index.targets) >= 48 and "stamps-repeat" in {*open_clip(path).index.flags}


def test_a_program_stream_that_stamps_some_frames(tmp_path):
    """FFmpeg guesses the others, some a few frames off; the rate is constant."""
    streams.write(tmp_path / "a.mpg", "mpeg2video", {"g": "18", "bf": "2", "b": "300k"}, count=120, sound="mp2")
    source = open_clip(tmp_path / "a.mpg")
    assert "stamps-repeat" in source.index.flags
    assert np.abs(source.info.times - source.info.times[0] - np.arange(120) / 25).max() < 1e-4
    assert shown(source.path) == [*range(120)] and shown(source.path, 44, 45, 100) == [44, 45, 100]


def test_frames_without_a_time_are_not_shown(tmp_path):
    """Matroska's times begin at 0: what is stamped before has none."""

    def earlier(packet):
        packet.pts, packet.dts = (t - round(0.96 / packet.time_base) for t in (packet.pts, packet.dts))
        return packet

    streams.write(tmp_path / "whole.mp4", *H264)
    path = remux(tmp_path / "early.mkv", str(tmp_path / "whole.mp4"), change=earlier, avoid_negative_ts="disabled")
    assert shown(path) == [*range(24, 64)] and shown(path, 3, 30) == [27, 54]


@pytest.mark.parametrize("how", ["h264", "mpeg2video"])
def test_a_recording_that_begins_between_key_frames(how, tmp_path):
    encoder, options = ("libx264", OPEN) if how == "h264" else ("mpeg2video", streams.BACKWARD)
    streams.write(tmp_path / "whole.ts", encoder, options, sound="mp2")
    with av.open(str(tmp_path / "whole.ts")) as container:
        late = [p.pos for p in container.demux(video=0) if p.size][5]
    (tmp_path / "mid.ts").write_bytes((tmp_path / "whole.ts").read_bytes()[late // 188 * 188 :])
    numbers = shown(tmp_path / "mid.ts")
    assert 9 <= numbers[0] <= 14 and numbers == [*range(numbers[0], 64)]
    assert (
        shown(tmp_path / "mid.ts", 3, 20) == [numbers[3], numbers[20]]
        and in_step(tmp_path / "mid.ts", first=numbers[0] / 25) < 0.01
    )
    source = open_clip(tmp_path / "mid.ts")
    assert source.info.has_audio and "begins-between-key-frames" in source.flags


def test_an_edit_list_hides_the_first_frames(tmp_path):
    streams.write(tmp_path / "cut.mp4", *H264, first=-9, sound="aac", avoid_negative_ts="disabled")
    assert shown(tmp_path / "cut.mp4") == [*range(9, 64)] and in_step(tmp_path / "cut.mp4", 0.1, first=0.36) < 0.01


def test_pictures_of_another_size_come_in_the_first_one(tmp_path):
    with av.open(str(tmp_path / "sizes.mkv"), "w") as out:
        stream = out.add_stream("mjpeg", rate=25)
        stream.height, stream.width, stream.pix_fmt = 64, 112, "yuvj420p"
        for number in range(20):
            jpeg = io.BytesIO()
            picture = Image.fromarray(streams.clock(number))
            (picture if number < 10 else picture.resize((224, 128))).save(jpeg, "jpeg")
            packet = av.Packet(jpeg.getvalue())
            packet.pts = packet.dts = number
            packet.time_base, packet.stream, packet.is_keyframe = Fraction(1, 25), stream, True
            out.mux(packet)
    source = open_clip(tmp_path / "sizes.mkv")
    assert source.frames([0, 15]).shape == (2, 64, 112, 3) and shown(source.path) == [*range(20)]
    assert "picture-size-changes" in source.flags and len(list(source.frames_between(8, 12))) == 4


@pytest.mark.parametrize("ahead", [0, 64, 25_000], ids=["back to its start", "on", "ahead"])
def test_recordings_in_a_row(ahead, tmp_path):
    """The clock jumps back, goes on, or jumps ahead; the sound changes from 48 kHz to 44.1."""
    for name, first, rate in (("a", 0, 48_000), ("b", ahead, 44_100)):
        streams.write(tmp_path / f"{name}.ts", *H264, sound="aac", first=first, rate=rate)
    path = tmp_path / "both.ts"
    path.write_bytes((tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes())
    source = open_clip(path)
    assert shown(path) == [*range(64)] * 2 and shown(path, 100, 120) == [36, 56]
    assert ("stamps-jump" in source.flags or "stamps-jump" in source.index.flags) == (ahead != 64)
    assert np.abs(source.info.times - source.info.times[0] - np.arange(128) / 25).max() < 0.09
    assert in_step(path) < 0.01 and in_step(path, 2.8, first=-2.56) < 0.09


def test_a_header_that_promises_more(tmp_path):
    streams.write(tmp_path / "a.avi", "mpeg4", streams.BACKWARD, sound="pcm_s16le")
    data = bytearray((tmp_path / "a.avi").read_bytes())
    place = data.index(b"strh") + 8 + 32
    assert struct.unpack_from("<I", data, place) == (64,)
    struct.pack_into("<I", data, place, 200)
    (tmp_path / "a.avi").write_bytes(data)
    source = open_clip(tmp_path / "a.avi")
    assert shown(source.path) == [*range(64)] and source.index.flags == ("header-promises-more",)


def test_names_are_bytes(plain, tmp_path):
    names = [
        b"a:b.mp4",
        b"http:x.mp4",
        b"take%03d[x].mp4",
        b"bad\xff\xfe.MP4",
        b"\x1b[31mred.m2ts",
        "späß.mts".encode(),
        b"._1.mp4",
        b"notes.doc",
    ]
    for name in names:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(Path(plain).read_bytes())
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "loop").symlink_to(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "z.mkv").write_bytes(b"")
    (tmp_path / "inner" / "linked").symlink_to(tmp_path / "elsewhere")
    found, others = find_files(tmp_path)
    assert (
        {os.fsencode(Path(p).name) for p in found} == {*names[:6], b"z.mkv"}
        and others == {".mp4": 1, ".doc": 1}
        and len(found) == 7
    )
    for path in found:
        if path.endswith("z.mkv"):
            with pytest.raises(MediaError, match="the file is empty"):
                open_clip(path).info  # noqa: B018
        else:
            assert shown(path, 3, 60) == [3, 60]
    text = str(MediaError(os.fsdecode(b"bad\xff\x1b[31m.mp4"), "is empty"))
    assert text.isprintable() and text.encode() == rb"bad\udcff\x1b[31m.mp4: is empty"


def test_frames_in_natural_order(tmp_path):
    for number in range(12):
        Image.fromarray(streams.clock(number)).save(tmp_path / f"{number + 1}.png")
    (tmp_path / "._1.png").write_bytes(b"\0\5\x16\7")
    Image.fromarray(streams.clock(12)).resize((224, 128)).save(tmp_path / "13.png")
    assert shown(tmp_path) == [*range(13)] and open_clip(tmp_path).frames([12]).shape == (1, 64, 112, 3)
    wav(tmp_path / "s.wav", bursts(1.0, 16_000))
    source = open_clip(Clip(0, str(tmp_path), audio_path=str(tmp_path / "s.wav")))
    assert source.info.has_audio and np.abs(delays(source.sound(0.01, 0.9)) + 0.01).max() < 0.01


@pytest.mark.parametrize(
    "text", ["#EXTM3U\na.ts\n", "ffconcat version 1.0\nfile a.mp4\n", '\ufeff<?xml version="1.0"?><MPD/>', "v=0\no=x\n"]
)
def test_playlists_are_refused_by_name(text, tmp_path):
    (tmp_path / "list.mp4").write_text(text)
    with pytest.raises(MediaError, match="is a playlist, which names other files"):
        open_clip(tmp_path / "list.mp4").info  # noqa: B018


def test_frames_that_would_fill_the_memory_are_refused(tmp_path):
    Image.new("1", (9000, 5000)).save(tmp_path / "1.png")
    with pytest.raises(MediaError, match="1 frames of 9000 x 5000 pixels are more than is read"):
        open_clip(tmp_path).frames([0])
    Image.new("1", (6000, 5000)).save(tmp_path / "1.png")
    with pytest.raises(MediaError, match="30 frames of 6000 x 5000 pixels"):
        open_clip(tmp_path).frames([0] * 30)


@pytest.mark.parametrize("suffix", ["mp4", "ts", *(pytest.param(s, marks=pytest.mark.exhaustive) for s in ("mkv", "flv"))])
def test_an_hour_costs_what_a_minute_costs(suffix, tmp_path):
    """A segment of 3 s, its sound included, at second 1 and at second 3,590."""
    stretched = tmp_path / "a.mp4"
    streams.write(stretched, *H264, sound="aac", rate=8_000, stamps=range(0, 320, 5))
    with av.open(str(stretched)) as given, av.open(str(tmp_path / f"hour.{suffix}"), "w") as out:
        packets = [p for p in given.demux() if p.size and (p.stream.type == "video" or 0 <= p.pts * p.time_base < 12.8)]
        target, begun = {s.index: out.add_stream_from_template(s) for s in given.streams}, [(p.pts, p.dts) for p in packets]
        places, bases, last = zip(*((p.stream.index, p.time_base, p.duration) for p in packets), strict=True)
        for k in range(282):
            for packet, (pts, dts), place, base, lasts in zip(packets, begun, places, bases, last, strict=True):
                packet.stream, packet.time_base, packet.duration = target[place], base, lasts  # muxing changes them
                packet.pts, packet.dts = (stamp + round(k * Fraction("12.8") / base) for stamp in (pts, dts))
                out.mux(packet)
    source, spent = open_clip(tmp_path / f"hour.{suffix}"), {1: [], 3590: []}
    times = source.info.times
    assert len(times) == 64 * 282
    for second in [1, 3590] * 5:
        numbers = np.arange(5 * second, 5 * second + 15)
        before = time.process_time()
        frames, sound = source.frames(numbers), source.sound(times[numbers[0]], times[numbers[0]] + 3)
        spent[second].append(time.process_time() - before)
        assert [told(frame) for frame in frames] == (numbers % 64).tolist() and len(sound) == 48_000
    assert min(spent[3590]) < 2 * min(spent[1]), spent


def test_what_is_kept_of_files_is_bounded(plain, tmp_path, monkeypatch):
    """By frames: of long recordings few are kept."""
    paths = [tmp_path / f"{k}.mp4" for k in range(5)]
    for path in paths:
        path.symlink_to(plain)
    probing.forget()
    monkeypatch.setattr(probing, "CACHED", 200)
    for path in (*paths, paths[3]):
        assert len(open_clip(path).info.times) == 64
    assert [Path(path).name for path, _ in probing._cache] == ["2.mp4", "4.mp4", "3.mp4"]
