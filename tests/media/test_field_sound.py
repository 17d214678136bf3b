"""Sound as people have it: each kind that was once read wrongly, with what a player sounds."""

import io
import struct
from pathlib import Path

import av
import numpy as np
import pytest
import streams
from av.stream import Disposition
from PIL import Image
from streams import H264, bursts, delays, remux, voice, wav

from avfmae.config import ModelConfig
from avfmae.data.clip import Clip
from avfmae.data.config import DataConfig
from avfmae.data.dataset import PretrainDataset, read_window_audio, sample_window
from avfmae.data.loader import loader
from avfmae.data.sources import MediaError, open_clip


@pytest.mark.parametrize("late", ["video", "audio"])
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_tracks_that_begin_apart(late, suffix, plain, tmp_path):
    def delay(packet):
        if packet.stream.type == late:
            packet.pts, packet.dts = (t + round(1 / packet.time_base) for t in (packet.pts, packet.dts))
        return packet

    source = open_clip(remux(tmp_path / f"late.{suffix}", plain, change=delay))
    begin = source.info.times[0]
    found = delays(source.sound(begin + 0.01, begin + 2.5)) + 0.01
    assert len(found) > 5 and np.abs(found - (-1 if late == "video" else 1)).max() < 0.01


def test_a_damaged_packet_of_sound_is_a_hole(plain, tmp_path):
    path = tmp_path / "hole.mkv"
    data = bytearray(Path(remux(path, plain)).read_bytes())
    with av.open(plain) as container:
        packets = [bytes(p) for p in container.demux(audio=0) if p.size > 40]
    place = data.index(packets[22])
    data[place : place + len(packets[22])] = b"\xff" * len(packets[22])
    path.write_bytes(data)
    source = open_clip(path)
    found = delays(source.sound(source.info.times[0], source.info.times[0] + 2.5))
    assert "sound-damaged" in source.flags and len(found) >= 10 and np.abs(found).max() < 0.01


def test_sound_that_is_no_number_and_sound_that_is_too_loud(tmp_path):
    samples = bursts(3.0, 16_000)
    samples[20_000] = np.nan
    source = open_clip(wav(tmp_path / "nan.wav", samples))
    assert np.abs(delays(source.sound(0, 1.0))).max() < 0.01
    with pytest.raises(MediaError, match=r"no numbers \(NaN or Inf\) between 1.00 and 2.00 s"):
        source.sound(1.0, 2.0)
    for missing in ("error", "silence"):  # not to be taken for no sound
        with pytest.raises(MediaError, match="no numbers"):
            read_window_audio(source, sample_window(source.info, Clip(0, "x"), 0.0, 16, DataConfig(), spread=False), missing)
    source = open_clip(wav(tmp_path / "loud.wav", 300 * bursts(3.0, 16_000)))
    assert np.abs(source.sound(0, 1.0)).max() == 1 and source.flags == {"sound-beyond-full-scale"}


@pytest.mark.parametrize(("layout", "encoder"), [("stereo", "flac"), ("stereo", "aac"), ("5.1", "pcm_f32le")])
def test_a_sound_in_all_channels_is_as_loud_as_in_one(layout, encoder, tmp_path):
    with av.open(str(tmp_path / "wide.mkv"), "w") as out:
        voice(out, out.add_stream(encoder, rate=48_000, layout=layout), 1.5 * bursts(2.0, 48_000))
    source = open_clip(tmp_path / "wide.mkv")
    assert np.abs(source.sound(0, 1.9)).max() == pytest.approx(0.9, abs=0.06) and not source.flags


def test_a_cover_is_no_video(plain, tmp_path):
    art = io.BytesIO()
    Image.new("RGB", (48, 48), (255, 0, 0)).save(art, "png")
    body = b"\0image/png\0\x03\0" + art.getvalue()
    tag = b"APIC" + struct.pack(">IH", len(body), 0) + body
    size = bytes(len(tag) >> shift & 127 for shift in (21, 14, 7, 0))
    with av.open(str(tmp_path / "bare.mp3"), "w") as out:
        voice(out, out.add_stream("libmp3lame", rate=48_000, layout="mono"), bursts(2.5, 48_000))
    (tmp_path / "cover.mp3").write_bytes(b"ID3\x03\0\0" + size + tag + (tmp_path / "bare.mp3").read_bytes())
    source = open_clip(tmp_path / "cover.mp3")
    assert not source.info.has_video and np.abs(delays(source.sound(source.info.start, source.info.start + 2))).max() < 0.01
    with pytest.raises(MediaError, match="has no video track"):
        source.frames([0])


def test_of_several_tracks_the_default_one_or_the_named_one(plain, tmp_path):
    path = tmp_path / "several.mkv"
    with av.open(plain) as given, av.open(str(path), "w") as out:
        video = out.add_stream_from_template(given.streams.video[0])
        tracks = [out.add_stream("aac", rate=48_000, layout="mono") for _ in range(3)]
        for track, language, flag in zip(tracks, ("deu", "eng", "fra"), (0, Disposition.default, 0), strict=True):
            track.metadata["language"], track.disposition = language, Disposition(flag).value
        for packet in given.demux(video=0):
            if packet.size:
                packet.stream = video
                out.mux(packet)
        for k, track in enumerate(tracks):
            voice(out, track, np.roll(bursts(2.56, 48_000), 2400 * k) * 0.9)
    for name, late in ((None, 0.05), ("0", 0.0), ("2", 0.1), ("deu", 0.0), ("fra", 0.1)):
        assert np.abs(delays(open_clip(path, name).sound(0.01, 2.0)) + 0.01 - late).max() < 0.01, name
    assert not open_clip(path, "jpn").info.has_audio


def test_a_separate_sound_file_has_its_own_clock(plain, tmp_path):
    """Both begin together, whatever stamps they begin with."""

    def sound(packet):
        packet.pts, packet.dts = (t + round(7 / packet.time_base) for t in (packet.pts, packet.dts))
        return packet if packet.stream.type == "audio" else None

    with av.open(plain) as given, av.open(str(tmp_path / "late.mka"), "w", format="matroska") as out:
        stream = out.add_stream_from_template(given.streams.audio[0])
        for packet in given.demux(audio=0):
            if packet.size and sound(packet):
                packet.stream = stream
                out.mux(packet)
    source = open_clip(Clip(0, plain, audio_path=str(tmp_path / "late.mka")))
    assert np.abs(delays(source.sound(0.01, 2.0)) + 0.01).max() < 0.025  # the encoder's delay is not told by Matroska's copy


@pytest.mark.slow
def test_sound_that_ends_early_and_what_a_worker_met_before(plain, tmp_path):
    """Windows without sound go by the option; a batch is the same in whatever order and by however many it is read."""
    streams.write(tmp_path / "long.mp4", *H264, count=200, sound=None)
    with av.open(str(tmp_path / "long.mp4")) as given, av.open(str(tmp_path / "early.mkv"), "w") as out:
        video, audio = out.add_stream_from_template(given.streams.video[0]), out.add_stream("aac", rate=48_000, layout="mono")
        for packet in given.demux(video=0):
            if packet.size:
                packet.stream = video
                out.mux(packet)
        voice(out, audio, bursts(3.0, 48_000))
    early, clips = str(tmp_path / "early.mkv"), [Clip(k, str(tmp_path / "early.mkv") if k % 2 else plain) for k in range(6)]
    source = open_clip(early)
    windows = [sample_window(source.info, Clip(0, early), p, 16, DataConfig(), spread=False) for p in (0.0, 0.3, 1.0)]
    sounds = [read_window_audio(source, window, "silence") for window in windows]
    assert [len(s) for s in sounds] == [40_960] * 3 and not sounds[2].any() and 0 < np.flatnonzero(sounds[1]).max() < 30_000
    assert len(read_window_audio(source, windows[1], "error")) < 30_000
    with pytest.raises(MediaError, match="has 0 samples of sound at"):
        read_window_audio(source, windows[2], "error")
    cfg, batches = ModelConfig.preset("tiny"), [[(e, k) for k in range(6)] for e in range(3)]
    runs = [
        [
            (b.clips, b.raw.sound, [bad.id for bad in b.bad])
            for b in loader(PretrainDataset(clips, cfg, DataConfig(), "pretrain"), todo, n)
        ]
        for todo, n in ((batches, 0), (batches, 2), (batches[1:], 0))
    ]
    for run in runs[1:]:
        for (ids, sound, bad), (ids2, sound2, bad2) in zip(runs[0][-len(run) :], run, strict=True):
            assert ids == ids2 and bad == bad2 and np.array_equal(sound, sound2)
    assert any(bad for _, _, bad in runs[0])
