"""Whatever window is asked for, of whatever stream, its frames are those of decoding the whole file, and colours are right."""

from fractions import Fraction
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import streams
from av.stream import Disposition
from streams import KINDS, decode_all, told

from avfmae.data.sources import MediaError, open_clip, probing
from avfmae.data.sources import media as media_source
from avfmae.data.sources.bitstream import BACKWARD, IN_ORDER, is_disposable
from avfmae.data.sources.media import DECORD_EXACT


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Name of a kind -> path, made when it is first asked for."""
    root, made = tmp_path_factory.mktemp("streams"), {}

    def file(kind: str, **options) -> str:
        key = (kind, *options.items())
        if key not in made:
            suffix, encoder, settings = KINDS[kind]
            if encoder not in av.codecs_available:
                pytest.skip(f"this PyAV has no {encoder}")
            path = root / f"{len(made)}{suffix}"
            streams.write(path, encoder, settings, **options)
            made[key] = str(path)
        return made[key]

    return file


READ_BY_DECORD = {".mp4", ".mkv", ".mov", ".webm", ".flv"}


def windows(count: int) -> list[list[int]]:
    """All frames; single ones about the key frames, in the middle and at the end; and windows from everywhere."""
    single = [0, 1, 2, 10, 11, 12, 13, 23, 24, 25, 36, count // 2, count - 3, count - 2, count - 1]
    strided = [[min(first + 4 * k, count - 1) for k in range(8)] for first in range(0, count - 8, 5)]
    return [list(range(count)), *[[n] for n in single if n < count], *strided]


def differing(path: str, every: np.ndarray, backend: str) -> int:
    """How many frames of all windows are others than decoding the whole file gives."""
    read = ((window, open_clip(path).frames(window, backend=backend)) for window in windows(len(every)))
    return sum(int((frames != every[window]).any((1, 2, 3)).sum()) for window, frames in read)


@pytest.mark.parametrize("kind", KINDS)
def test_every_window_is_that_of_decoding_the_whole_file(kind, files):
    path = files(kind)
    every, info = decode_all(path), open_clip(path).info
    assert [told(frame) for frame in every] == list(range(64)) and len(info.times) == 64  # the file is what it should be
    assert differing(path, every, "auto") == 0
    assert np.array_equal(np.stack(list(open_clip(path).frames_between(20, 40))), every[20:40])


@pytest.mark.parametrize(
    "kind", ["h264-open-mp4", "h264-without-b", "hevc-open-mp4", "mpeg4-mp4", "mpeg2-mkv", "vp9-mp4", "mjpeg-mov"]
)
@pytest.mark.parametrize("first", [-9, 30], ids=["edit list", "late start"])
def test_windows_of_shifted_streams(kind, first, files):
    path = files(kind, first=first, **({"avoid_negative_ts": "disabled"} if first < 0 and kind.endswith("mp4") else {}))
    every, info = decode_all(path), open_clip(path).info
    assert len(every) == len(info.times)
    assert differing(path, every, "auto") == 0


def test_key_frames_are_used_where_that_is_safe(files, monkeypatch):
    """Not vacuous: windows are reached by seeks, except where key frames promise too little."""
    begun = []
    decoded = media_source._decoded
    monkeypatch.setattr(
        media_source, "_decoded", lambda source, index, key, wanted: begun.append(key) or decoded(source, index, key, wanted)
    )
    for kind, key in {
        "h264-open-mp4": 48,
        "hevc-open-mp4": 48,
        "mpeg2-mkv": 49,
        "av1-mp4": 48,
        "h264-refresh": 0,
        "h264-open-ts": 48,
        "mpeg4-avi": 49,
        "wmv2-asf": 48,
    }.items():
        begun.clear()
        open_clip(files(kind)).frames([53])
        assert len(begun) == 1 and abs(begun[0] - key) <= 3, (kind, begun)


def test_a_mark_on_a_frame_that_is_no_key_does_not_mislead(files, tmp_path):
    """Some muxers mark every frame as a key."""
    path = str(tmp_path / "marked.mkv")
    with av.open(files("h264-mkv")) as source, av.open(path, "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream, packet.is_keyframe = stream, True
                out.mux(packet)
    assert len(open_clip(path).index.keys) < 10 and differing(path, decode_all(path), "auto") == 0


def copied(source: str, path: Path, change, first: int = 0) -> str:
    """The stream's packets from number ``first`` on, as ``change`` leaves each of them."""
    with av.open(source) as given, av.open(str(path), "w") as out:
        stream = out.add_stream_from_template(given.streams.video[0])
        for packet in [p for p in given.demux(video=0) if p.size][first:]:
            packet.stream = stream
            change(packet)
            out.mux(packet)
    return str(path)


@pytest.mark.parametrize("kind", ["mpeg4-mp4", "h264-open-mp4"])
def test_stamps_in_the_order_of_coding_are_not_taken_for_those_of_showing(kind, files, tmp_path):
    """As a copy from AVI or ASF to MP4 has them."""
    with av.open(files(kind)) as container:
        begin = next(container.demux(video=0)).dts

    def shown_when_coded(packet):
        packet.pts = packet.dts = packet.dts - begin

    path = copied(files(kind), tmp_path / "coded.mp4", shown_when_coded)
    every = decode_all(path)
    assert [told(frame) for frame in every] == list(range(64)) and not open_clip(path).index.exact
    assert differing(path, every, "auto") == 0


@pytest.mark.parametrize("kind", ["h264-open-mp4", "hevc-open-mp4", "mpeg2-mkv"])
def test_a_file_that_was_cut_at_a_key_frame_begins_with_what_decodes(kind, files, tmp_path):
    """Of an open group the first pictures need what was cut off."""
    with av.open(files(kind)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
    first = [i for i, packet in enumerate(packets) if packet.is_keyframe][2]
    leading = sum(packet.pts < packets[first].pts for packet in packets[first:])
    path = copied(files(kind), tmp_path / f"cut{Path(files(kind)).suffix}", lambda packet: None, first)
    every = decode_all(path)
    assert leading and len(open_clip(path).info.times) == len(every) == len(packets) - first - leading
    assert differing(path, every, "auto") == 0


class _Packet(SimpleNamespace):
    def __bytes__(self):
        return b""


def test_frames_without_stamps_count():
    """An MPEG program stream need not stamp every frame: they follow one another at their rate."""
    stamps = [None if i % 3 else 3600 * i for i in range(30)]
    packets = [
        _Packet(
            pts=t, dts=t, size=9, duration=3600, time_base=Fraction(1, 90_000), is_keyframe=i == 0, is_discard=False, opaque=None
        )
        for i, t in enumerate(stamps)
    ]
    codec = SimpleNamespace(
        width=64, height=64, extradata=b"", has_b_frames=True, codec=SimpleNamespace(canonical_name="mpeg2video")
    )
    stream = SimpleNamespace(
        type="video",
        codec_context=codec,
        duration=None,
        frames=0,
        time_base=Fraction(1, 90_000),
        average_rate=Fraction(25),
        index=0,
        disposition=Disposition(0),
    )
    for packet in packets:
        packet.stream = stream
    container = SimpleNamespace(
        streams=SimpleNamespace(video=[stream], audio=[]),
        format=SimpleNamespace(name="mpeg"),
        demux=lambda: packets,
        start_time=0,
        duration=0,
    )
    index = probing.probe_container("x.vob", container, probing._Packets())
    assert len(index.info.times) == 30 and np.allclose(np.diff(index.info.times), 0.04) and not index.exact


def test_every_key_codec_was_tried(files):
    names = {"flv": "flv1", "libx264": "h264", "libx265": "hevc", "libvpx": "vp8", "libvpx-vp9": "vp9", "libsvtav1": "av1",
             "prores_ks": "prores", "msmpeg4": "msmpeg4v3"}  # fmt: skip
    tried = {names.get(encoder, encoder) for _, encoder, _ in KINDS.values()}
    assert tried >= IN_ORDER | set(BACKWARD) and tried >= DECORD_EXACT


@pytest.mark.parametrize("kind", KINDS)
def test_decord_is_right_or_refuses(kind, files):
    """The streams that it may read, by the table, are read rightly, frame by frame; of the others it is kept away."""
    path = files(kind)
    index = open_clip(path).index
    if Path(path).suffix in READ_BY_DECORD and index.codec in DECORD_EXACT and not index.open_groups:
        for path in (files(kind), files(kind, first=30)):
            assert differing(path, decode_all(path), "decord") == 0
    else:
        with pytest.raises(MediaError, match=r"decord gives wrong frames .* backend='pyav'"):
            open_clip(path).frames([3], backend="decord")


def test_decord_reads_something(files):
    """Not vacuous."""
    assert open_clip(files("h264-mp4")).frames([3, 40], backend="decord").shape == (2, 64, 112, 3)
    with pytest.raises(ValueError, match=r"backend: got 'opencv', expected one of 'auto', 'pyav', 'decord'"):
        open_clip(files("h264-mp4")).frames([3], backend="opencv")


def test_decord_does_give_wrong_frames_where_it_is_kept_away(files):
    """The day that this fails, the table can grow."""
    decord = pytest.importorskip("decord")
    wrong = 0
    for kind in ("h264-open-mp4", "mpeg2-mkv", "mpeg4-mp4"):
        every = decode_all(files(kind))
        for window in windows(64):
            wrong += int((decord.VideoReader(files(kind), num_threads=1).get_batch(window).asnumpy() != every[window]).any())
    assert wrong


def test_disposable_pictures_are_told_by_all_their_slices():
    def unit(header: int, size: int) -> bytes:
        return (3).to_bytes(size, "big") + bytes([header, 1, 2])

    for size in (1, 2, 4):
        assert is_disposable(unit(0x06, size) + unit(0x01, size) + unit(0x01, size), size)
        assert not is_disposable(unit(0x01, size) + unit(0x61, size), size) and not is_disposable(unit(0x65, size), size)
        assert not is_disposable(unit(0x06, size), size) and not is_disposable(b"", size)


COLOURS = np.array(
    [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0], [200, 120, 60], [128, 128, 128], [255, 255, 0]]
)
MATRICES = {"unknown": 2, "bt709": 1, "bt601": 6, "bt2020": 9}
RANGES = {"limited": 1, "full": 2}


def write_colours(path: Path, matrix: int, levels: int, size: int = 32) -> None:
    picture = np.repeat(np.repeat(COLOURS.reshape(2, 4, 3), size, 0), size, 1).astype(np.uint8)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt, stream.options = *picture.shape[:2], "yuv420p", {"crf": "4"}
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, levels
        coded = from_rgb(
            picture, {1: (0.2126, 0.0722), 9: (0.2627, 0.0593)}.get(matrix, (0.299, 0.114)), levels == RANGES["full"]
        )
        coded.colorspace, coded.color_range = matrix, levels
        for number in range(5):
            coded.pts = number
            out.mux(stream.encode(coded))
        out.mux(stream.encode())


def from_rgb(picture: np.ndarray, weights: tuple[float, float], full: bool) -> av.VideoFrame:
    """The picture in planes of luma and chroma, by the matrix's definition and not by the library under test."""
    red, green, blue = np.moveaxis(picture / 255.0, -1, 0)
    luma = weights[0] * red + (1 - sum(weights)) * green + weights[1] * blue
    chroma = [(c - luma)[::2, ::2] / (2 * (1 - w)) for c, w in ((blue, weights[1]), (red, weights[0]))]
    planes = [255 * luma if full else 16 + 219 * luma, *[128 + (255 if full else 224) * c for c in chroma]]
    return av.VideoFrame.from_ndarray(
        np.concatenate([p.round().clip(0, 255).ravel() for p in planes]).astype(np.uint8).reshape(-1, picture.shape[1]),
        format="yuv420p",
    )


def test_colours_come_back_right(tmp_path):
    """Of every matrix and range, one after the other: PyAV 14 to 16 take BT.709 for BT.601, and remember the settings of the file
    before."""
    for matrix, levels in product(MATRICES, RANGES):
        path = tmp_path / f"{matrix}-{levels}.mp4"
        write_colours(path, MATRICES[matrix], RANGES[levels])
        frame = open_clip(str(path)).frames([3])[0].reshape(2, 32, 4, 32, 3)[:, 8:24, :, 8:24].mean((1, 3)).reshape(8, 3)
        assert np.abs(frame - COLOURS).max() < 5, (matrix, levels, frame.round().tolist())
