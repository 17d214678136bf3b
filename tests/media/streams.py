"""Small files of every kind of stream whose frames are easily taken for others: open groups, frames out of order, edit lists."""

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from avfmae.data.sources import open_clip

FPS = 25
X264 = "scenecut=0:b-adapt=0:bframes=3:b-pyramid=normal"
X265 = "log-level=none:scenecut=0:bframes=4:min-keyint=12:keyint=12"
OPEN = {"x264-params": f"{X264}:keyint=12:open-gop=1"}
CLOSED = {"x264-params": f"{X264}:keyint=12:open-gop=0"}
H264 = ("libx264", CLOSED)
HIDDEN = {"g": "24", "auto-alt-ref": "1", "lag-in-frames": "16", "deadline": "good", "cpu-used": "5", "b": "200k"}
BACKWARD = {"g": "12", "bf": "2"}

PIXELS = {"mjpeg": "yuvj420p", "prores_ks": "yuv422p10le", "huffyuv": "yuv422p", "png": "rgb24"}  # where not yuv420p

# What it is called: (suffix, encoder, its options)
KINDS: dict[str, tuple[str, str, dict[str, str]]] = {
    "h264-mp4": (".mp4", "libx264", CLOSED),
    "h264-mkv": (".mkv", "libx264", CLOSED),
    "h264-flv": (".flv", "libx264", CLOSED),
    "h264-long-group": (".mp4", "libx264", {"x264-params": f"{X264}:keyint=250"}),
    "h264-open-mp4": (".mp4", "libx264", OPEN),
    "h264-open-mkv": (".mkv", "libx264", OPEN),
    "h264-open-mov": (".mov", "libx264", OPEN),
    "h264-open-ts": (".ts", "libx264", OPEN),
    "h264-open-avi": (".avi", "libx264", OPEN),
    "h264-groups-of-two": (".mp4", "libx264", {"x264-params": f"{X264}:keyint=2:open-gop=1"}),
    "h264-without-b": (".mp4", "libx264", {"x264-params": "scenecut=0:keyint=8:bframes=0:ref=4"}),
    "h264-refresh": (".mp4", "libx264", {"x264-params": "scenecut=0:intra-refresh=1:keyint=20:bframes=2"}),
    "hevc-open-mp4": (".mp4", "libx265", {"x265-params": f"{X265}:open-gop=1"}),
    "hevc-open-mkv": (".mkv", "libx265", {"x265-params": f"{X265}:open-gop=1"}),
    "hevc-open-ts": (".ts", "libx265", {"x265-params": f"{X265}:open-gop=1"}),
    "hevc-closed": (".mp4", "libx265", {"x265-params": f"{X265}:open-gop=0"}),
    "hevc-radl": (".mp4", "libx265", {"x265-params": f"{X265}:open-gop=0:radl=2"}),
    "mpeg4-mp4": (".mp4", "mpeg4", BACKWARD),
    "mpeg4-mkv": (".mkv", "mpeg4", BACKWARD),
    "mpeg4-avi": (".avi", "mpeg4", BACKWARD),
    "mpeg2-mkv": (".mkv", "mpeg2video", BACKWARD),
    "mpeg2-ts": (".ts", "mpeg2video", BACKWARD),
    "mpeg2-mpg": (".mpg", "mpeg2video", BACKWARD),
    "mpeg1-mpg": (".mpg", "mpeg1video", BACKWARD),
    "mpeg1-mkv": (".mkv", "mpeg1video", BACKWARD),
    "vp8-webm": (".webm", "libvpx", HIDDEN),
    "vp9-webm": (".webm", "libvpx-vp9", HIDDEN),
    "vp9-mp4": (".mp4", "libvpx-vp9", HIDDEN),
    "av1-mp4": (".mp4", "libsvtav1", {"preset": "10", "svtav1-params": "keyint=24:irefresh-type=2:lp=1"}),
    "av1-open": (".mp4", "libsvtav1", {"preset": "10", "svtav1-params": "keyint=24:irefresh-type=1:lp=1"}),
    "mjpeg-mov": (".mov", "mjpeg", {}),
    "mjpeg-avi": (".avi", "mjpeg", {}),
    "prores-mov": (".mov", "prores_ks", {}),
    "ffv1-mkv": (".mkv", "ffv1", {"g": "10"}),
    "flv1-flv": (".flv", "flv", {"g": "12"}),
    "wmv1-asf": (".asf", "wmv1", {"g": "12"}),
    "wmv2-asf": (".asf", "wmv2", {"g": "12"}),
    "msmpeg4v2-avi": (".avi", "msmpeg4v2", {"g": "12"}),
    "msmpeg4v3-avi": (".avi", "msmpeg4", {"g": "12"}),
    "huffyuv-avi": (".avi", "huffyuv", {}),
    "png-mov": (".mov", "png", {}),
    "rawvideo-avi": (".avi", "rawvideo", {}),
}


def clock(number: int, height: int = 64, width: int = 112) -> np.ndarray:
    """A picture that tells its number in eight blocks of black or white, with something that moves beneath."""
    frame = np.full((height, width, 3), 60, np.uint8)
    for bit in range(8):
        top, left = 16 * (bit // 4), width // 4 * (bit % 4)
        frame[top : top + 16, left : left + width // 4] = 235 if number >> bit & 1 else 16
    x = number * 5 % (width - 24)
    frame[40:52, x : x + 24], frame[52:, width - 24 - x : width - x] = (200, 120, 60), (40, 90, 220)
    return frame


def told(frame: np.ndarray) -> int:
    """The number that a picture of :func:`clock` tells."""
    width = frame.shape[1] // 4
    blocks = (frame[16 * (b // 4) + 4 :, width * (b % 4) + 6 :][:8, : width - 12].mean() for b in range(8))
    return sum((block > 125) << bit for bit, block in enumerate(blocks))


def bursts(seconds: float, rate: int) -> np.ndarray:
    """Silence with 30 ms of tone every 0.2 s, each of which tells its time by its pitch."""
    t = np.arange(round(seconds * rate)) / rate
    since = t % 0.2
    return np.where(since < 0.03, 0.6 * np.sin(2 * np.pi * (500 + 150 * (t // 0.2)) * since), 0)


def delays(samples: np.ndarray) -> np.ndarray:
    """By how many seconds each whole burst of 16 kHz samples comes later than the place where it is."""
    loud = np.flatnonzero(np.abs(samples) > 0.15)
    begins = loud[(np.diff(loud, prepend=-9999) > 800) & (loud > 400) & (loud < len(samples) - 480)]
    pitches = [np.abs(np.fft.rfft(samples[n : n + 448] * np.hanning(448), 1 << 14)).argmax() * 16_000 / (1 << 14) for n in begins]
    return np.array([n / 16_000 - 0.2 * round((p - 500) / 150) for n, p in zip(begins, pitches, strict=True)])


def write(
    path: Path, encoder: str, options: dict[str, str], count: int = 64, first: int = 0, sound: str | None = None,
    size: tuple[int, int] = (64, 112), rate: int = 48_000, stamps: Sequence[int] | None = None, **container: str,
) -> None:  # fmt: skip
    """Writes ``count`` clocks. The first is shown at frame time ``first``; what is before 0 an edit list hides, in mp4.

    Args:
        sound: encoder of the bursts beside it. stamps: frame times in place of one after the other.
        container: options of the container.
    """
    stamps = range(count) if stamps is None else stamps
    with av.open(str(path), "w", options=container) as out:
        stream = out.add_stream(encoder, rate=FPS)
        stream.height, stream.width = size
        stream.pix_fmt = PIXELS.get(encoder, "yuv420p")
        stream.codec_context.thread_count, stream.options = 1, options
        heard = sound and out.add_stream(sound, rate=rate, layout="stereo" if encoder == "dvvideo" else "mono")
        if sound == "wmav2":
            heard.bit_rate = 96_000
        for number in range(count):
            picture = av.VideoFrame.from_ndarray(clock(number, *size), format="rgb24")
            picture.pts, picture.time_base = first + stamps[number], Fraction(1, FPS)
            out.mux(stream.encode(picture))
        out.mux(stream.encode())
        if heard:
            voice(out, heard, bursts((2 * stamps[-1] - stamps[-2]) / FPS, rate), first / FPS)


def voice(out: av.container.OutputContainer, stream: av.AudioStream, samples: np.ndarray, begin: float = 0.0) -> None:
    """Encodes samples into a stream of a file that is being written."""
    rate, channels = stream.rate, stream.layout.nb_channels
    resampler = av.AudioResampler(
        stream.format.name, stream.layout.name, rate, frame_size=stream.codec_context.frame_size or 1024
    )
    frame = av.AudioFrame.from_ndarray(np.tile(samples, (channels, 1)).astype(np.float32), "fltp", stream.layout.name)
    frame.rate, frame.pts, frame.time_base = rate, round(begin * rate), Fraction(1, rate)
    for piece in (*resampler.resample(frame), *resampler.resample(None)):
        out.mux(stream.encode(piece))
    out.mux(stream.encode())


def decode_all(path: str) -> np.ndarray:
    """All frames, decoded in order by PyAV alone."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])


def delay_picture(source_path: str, target_path: str, seconds: float) -> None:
    """Copies a file with its picture ``seconds`` later than its sound."""
    with av.open(source_path) as source, av.open(target_path, "w") as out:
        streams = {s.index: out.add_stream_from_template(s) for s in source.streams}
        for packet in source.demux():
            if packet.dts is None:
                continue
            if packet.stream.type == "video":
                packet.pts += round(seconds / packet.time_base)
                packet.dts += round(seconds / packet.time_base)
            packet.stream = streams[packet.stream.index]
            out.mux(packet)


def remux(out: Path, *sources: str, change=lambda packet: packet, **options: str) -> str:
    """The streams of all sources in a new container; ``change`` gives each packet as it is to be, or None to leave it out."""
    with av.open(str(out), "w", options=options) as target:
        opened = [av.open(source) for source in sources]
        packets = []
        for container in opened:
            streams = {s.index: target.add_stream_from_template(s) for s in container.streams}
            packets += [(p, streams[p.stream.index]) for p in container.demux() if p.size]
        for packet, stream in sorted(packets, key=lambda p: (p[0].pts if p[0].dts is None else p[0].dts) * p[0].time_base):
            if (packet := change(packet)) is not None:
                packet.stream = stream
                target.mux(packet)
        for container in opened:
            container.close()
    return str(out)


def shown(path: str | Path, *numbers: int) -> list[int]:
    source = open_clip(path)
    return [told(frame) for frame in source.frames(numbers or range(len(source.info.times)))]


def in_step(path: str | Path, begin: float = 0.0, length: float = 1.2, first: float = 0.0) -> float:
    """The largest delay, in seconds, of sound against a picture whose first frame tells the time ``first``."""
    source = open_clip(path)
    found = delays(source.sound(source.info.times[0] + begin, source.info.times[0] + begin + length))
    assert len(found) >= 3
    return float(np.abs(found + begin + first).max())


def wav(path: Path, samples: np.ndarray, rate: int = 16_000) -> str:
    """A wav file of 32-bit floats."""
    data = samples.astype("<f4").tobytes()
    head = struct.pack(
        "<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + len(data), b"WAVE", b"fmt ", 16, 3, 1, rate, 4 * rate, 4, 32, b"data", len(data)
    )
    path.write_bytes(head + data)
    return str(path)
