"""What a media file says without being decoded: when each frame is shown, where decoding can begin, whether it is complete."""

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import av
import numpy as np

from avfmae.data.sources.bitstream import begins_anew, is_reset, length_size
from avfmae.data.sources.source import MediaError, VideoInfo, as_media_error

av.logging.set_level(av.logging.PANIC)  # our own errors say what is wrong with a file

LONGEST = 86_400.0  # seconds; a file whose stamps claim more is broken
LARGEST_FRAME = 40_000_000  # pixels; a file that claims more is broken
NOMINAL_FPS = 25.0  # of frame images and of sound alone, which carry no frame times
SEEKABLE = {"mov", "mp4", "matroska", "webm", "flv"}  # containers in which every packet carries its own time stamp
STAMPED = SEEKABLE | {"mpegts", "asf"}  # whose stamps are of showing; of an MPEG program stream many are guesses


def open_media(path: str) -> av.container.InputContainer:
    """The opened file.

    Raises:
        MediaError: there is none, it is empty, or no media file.
    """
    file = Path(path)
    if not file.exists():
        raise MediaError(path, "no such file")
    if file.stat().st_size == 0:
        raise MediaError(path, "the file is empty")
    with as_media_error(path, "is no readable media file"):
        return av.open(path)


@lru_cache(maxsize=65536)
def probe(path: str) -> VideoInfo:
    """Reads a video's frame times without decoding it. Sound alone gets the frame times that a video beside it would have.

    Raises:
        MediaError: missing, empty, truncated, or neither video nor sound.
    """
    ticks: list[int] = []
    with as_media_error(path, lambda: f"breaks off after {len(ticks)} frames"), open_media(path) as container:
        return probe_container(path, container, ticks)


def probe_container(path: str, container: av.container.InputContainer, ticks: list[int]) -> VideoInfo:
    """As :func:`probe`; ``ticks`` is filled with the frames' time stamps as they are counted."""
    if not container.streams.video and not container.streams.audio:
        raise MediaError(path, "has no video track")
    stream = (container.streams.video or container.streams.audio)[0]
    codec = stream.codec_context
    if stream.type == "video" and codec.width * codec.height > LARGEST_FRAME:
        raise MediaError(path, f"claims frames of {codec.width} x {codec.height} pixels")
    formats = set(container.format.name.split(","))
    packets = _walk(container, stream, formats, _Packets(ticks, stamped=bool(formats & STAMPED)))
    if not ticks:
        raise MediaError(path, "has no frames")
    _check_complete(path, container, stream, formats, packets)
    start = (container.start_time or 0) / av.time_base
    if stream.type == "audio":
        times = start + np.arange(max(1, int((packets.end - start) * NOMINAL_FPS))) / NOMINAL_FPS
        return VideoInfo(times, start, NOMINAL_FPS, has_audio=True, has_video=False)
    ticks, stamped = _presentation(stream, packets)
    times = np.array(ticks) * float(stream.time_base)
    if times[-1] - times[0] > LONGEST:
        raise MediaError(path, f"claims to last {times[-1] - times[0]:.3g} s")
    fps = (len(times) - 1) / (times[-1] - times[0]) if times[-1] > times[0] else float(stream.average_rate or NOMINAL_FPS)
    exact_seek = stamped and bool(formats & SEEKABLE)
    keys = np.searchsorted(ticks, np.sort(packets.keys)) if exact_seek and packets.keys else np.zeros(1, int)
    return VideoInfo(times, start, fps, bool(container.streams.audio), exact_seek, keys, codec.codec.canonical_name,
                     packets.open_groups, stamped)  # fmt: skip


@dataclass
class _Packets:
    """What the packets of a file say. Stamps are in ticks of the stream's time base.

    Attributes:
        ticks: stamp of every frame, in the order of coding. stamped: all of these are stamps of showing.
        keys: stamps of the frames at which decoding can begin.
        first: stamp of the first packet if it is a key frame, else -inf; None: there is no packet.
        shown: when the last frame ends. end: when the last packet of any track ends, in seconds.
        unstamped: frames without a stamp. reorders: frames are not coded in the order of showing.
        open_groups: as in VideoInfo.
    """

    ticks: list[int]
    stamped: bool
    keys: list[int] = field(default_factory=list)
    first: float | None = None
    shown: int = 0
    end: float = 0.0
    unstamped: int = 0
    reorders: bool = False
    open_groups: bool = False


def _walk(container: av.container.InputContainer, stream, formats: set[str], found: _Packets) -> _Packets:
    """Reads all packets."""
    codec = stream.codec_context.codec.canonical_name
    size = length_size(stream) if stream.type == "video" else 0
    for packet in container.demux():
        stamp = packet.dts if packet.pts is None else packet.pts
        if stamp is None:
            found.unstamped += packet.stream is stream and packet.size > 0 and not formats & SEEKABLE
            continue
        found.end = max(found.end, float((stamp + (packet.duration or 0)) * packet.time_base))
        if packet.stream is not stream or not packet.size:
            continue
        if found.first is None:
            found.first = stamp if packet.is_keyframe else -np.inf
        if packet.is_discard:  # an edit list hides it
            continue
        found.shown = max(found.shown, stamp + (packet.duration or 0))
        found.ticks.append(stamp)
        found.stamped &= packet.pts is not None
        found.reorders |= stamp < max(found.ticks[-2:])
        if begins_anew(packet, codec, size):
            found.keys.append(stamp)
        found.open_groups |= codec == "h264" and packet.is_keyframe and not is_reset(packet, size)
    return found


def _check_complete(path: str, container, stream, formats: set[str], packets: _Packets) -> None:
    """Compares what is there with what the headers promise.

    Raises:
        MediaError: frames or seconds are missing.
    """
    ticks = packets.ticks
    until = None if stream.duration is None else (stream.start_time or 0) + stream.duration  # without what an edit list hides
    a_frame = (max(ticks) - min(ticks)) / max(1, len(ticks) - 1)
    if stream.frames > len(ticks) + 1 and (until is None or until - packets.shown > a_frame):
        raise MediaError(path, f"is truncated: {len(ticks)} of {stream.frames} frames are there")
    expected = (container.duration or 0) / av.time_base
    if "matroska" not in formats:  # whose duration counts from zero
        expected += (container.start_time or 0) / av.time_base
    if expected - packets.end > max(0.5, 0.1 * expected) and "mpeg" not in container.format.name:
        raise MediaError(path, f"is truncated: {packets.end:.2f} of {expected:.2f} s are there")


def _presentation(stream, packets: _Packets) -> tuple[list[int], bool]:
    """The ticks at which frames are shown, ascending, and whether a frame's number follows from its stamp."""
    ticks, stamped = packets.ticks, packets.stamped
    if packets.unstamped and stream.average_rate:  # as in program streams: frames follow one another at their nominal rate
        step = 1 / (stream.average_rate * stream.time_base)
        ticks, stamped = [min(ticks) + round(i * step) for i in range(len(ticks) + packets.unstamped)], False
    if stamped:  # a file that was cut at a key frame begins with frames that need what was cut off
        ticks = [tick for tick in ticks if tick >= packets.first]
    # stamps in the order of coding, as a copy from AVI or ASF has them, are not those of showing
    stamped = stamped and (packets.reorders or not getattr(stream.codec_context, "has_b_frames", False))
    return sorted(ticks), stamped and len(set(ticks)) == len(ticks)
