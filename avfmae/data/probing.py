"""What a media file says of itself: when each frame is shown, where decoding can begin, and whether all of it is there."""

from functools import lru_cache
from pathlib import Path

import av
import numpy as np

from avfmae.data import shards
from avfmae.data.bitstream import begins_anew, is_reset, length_size
from avfmae.data.media import MediaError, VideoInfo, blaming

av.logging.set_level(av.logging.PANIC)  # what is wrong with a file is told by our own errors

LONGEST = 86_400.0  # seconds; a file whose stamps claim more is broken
LARGEST_FRAME = 40_000_000  # pixels; what claims more is broken
NOMINAL_FPS = 25.0  # of frame images and of sound alone, which carry no frame times
SEEKABLE = {"mov", "mp4", "matroska", "webm", "flv"}  # containers in which every packet carries its own time stamp
STAMPED = SEEKABLE | {"mpegts", "asf"}  # whose stamps are of showing; of an MPEG program stream many are guesses
IMAGES = {".png", ".jpg", ".jpeg", ".bmp"}


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
    with blaming(path, "is no readable media file"):
        return av.open(path)


def frame_files(folder: str) -> list[Path]:
    """The frame images of a folder, in the order of their names."""
    return sorted(f for f in Path(folder).iterdir() if f.suffix.lower() in IMAGES)


@lru_cache(maxsize=65536)
def probe(path: str, need_video: bool = True) -> VideoInfo:
    """Reads a video's frame times without decoding it.

    Args:
        need_video: a file of sound alone is an error; else it gets the frame times that a video beside it would have.

    Raises:
        MediaError: missing, empty, truncated, or no video.
    """
    if shards.is_inside(path):
        return shards.open_clip(path).info
    if Path(path).is_dir():
        if not (count := len(frame_files(path))):
            raise MediaError(path, "the folder holds no frame images")
        return VideoInfo(np.arange(count) / NOMINAL_FPS, 0.0, NOMINAL_FPS, False, False)
    ticks: list[int] = []
    with blaming(path, lambda: f"breaks off after {len(ticks)} frames"), open_media(path) as container:
        return _probe(path, container, need_video, ticks)


def _probe(path: str, container: av.container.InputContainer, need_video: bool, ticks: list[int]) -> VideoInfo:
    if not container.streams.video and (need_video or not container.streams.audio):
        raise MediaError(path, "has no video track")
    stream = (container.streams.video or container.streams.audio)[0]
    if stream.type == "video" and stream.codec_context.width * stream.codec_context.height > LARGEST_FRAME:
        raise MediaError(path, f"claims frames of {stream.codec_context.width} x {stream.codec_context.height} pixels")
    formats, keys, end, shown, open_groups = set(container.format.name.split(",")), [], 0.0, 0, False
    codec = stream.codec_context.codec.canonical_name
    stamped, size = bool(formats & STAMPED), length_size(stream) if stream.type == "video" else 0
    reorders, unstamped, first = False, 0, None
    for packet in container.demux():
        stamp = packet.dts if packet.pts is None else packet.pts
        if stamp is None:
            unstamped += packet.stream is stream and packet.size > 0 and not formats & SEEKABLE
            continue
        end = max(end, float((stamp + (packet.duration or 0)) * packet.time_base))
        if packet.stream is stream and packet.size:
            if first is None:
                first = stamp if packet.is_keyframe else -np.inf
            if packet.is_discard:  # an edit list hides it
                continue
            shown = max(shown, stamp + (packet.duration or 0))
            ticks.append(stamp)
            stamped &= packet.pts is not None
            reorders |= stamp < max(ticks[-2:])
            if begins_anew(packet, codec, size):
                keys.append(stamp)
            open_groups |= codec == "h264" and packet.is_keyframe and not is_reset(packet, size)
    if not ticks:
        raise MediaError(path, "has no frames")
    until = None if stream.duration is None else (stream.start_time or 0) + stream.duration  # without what an edit list hides
    a_frame = (max(ticks) - min(ticks)) / max(1, len(ticks) - 1)
    if stream.frames > len(ticks) + 1 and (until is None or until - shown > a_frame):
        raise MediaError(path, f"is truncated: {len(ticks)} of {stream.frames} frames are there")
    start = (container.start_time or 0) / av.time_base
    expected = (container.duration or 0) / av.time_base + ("matroska" not in formats) * start  # Matroska counts from zero
    if expected - end > max(0.5, 0.1 * expected) and "mpeg" not in container.format.name:
        raise MediaError(path, f"is truncated: {end:.2f} of {expected:.2f} s are there")
    if stream.type == "audio":
        times = start + np.arange(max(1, int((end - start) * NOMINAL_FPS))) / NOMINAL_FPS
        return VideoInfo(times, start, NOMINAL_FPS, True, False)
    if unstamped and stream.average_rate:  # as in program streams: frames follow one another at their nominal rate
        step = 1 / (stream.average_rate * stream.time_base)
        ticks = [min(ticks) + round(i * step) for i in range(len(ticks) + unstamped)]
        stamped = False
    if stamped and first is not None:  # a file that was cut at a key frame begins with pictures that need what was cut off
        ticks = [tick for tick in ticks if tick >= first]
    # stamps in the order of coding, as a copy from AVI or ASF has them, are not those of showing
    stamped &= reorders or not getattr(stream.codec_context, "has_b_frames", False)
    times = np.sort(np.array(ticks)) * float(stream.time_base)
    if times[-1] - times[0] > LONGEST:
        raise MediaError(path, f"claims to last {times[-1] - times[0]:.3g} s")
    fps = (len(times) - 1) / (times[-1] - times[0]) if times[-1] > times[0] else float(stream.average_rate or NOMINAL_FPS)
    stamped &= len(set(ticks)) == len(ticks)
    exact_seek = stamped and bool(formats & SEEKABLE)
    numbers = np.searchsorted(np.sort(ticks), np.sort(keys)) if exact_seek and keys else np.zeros(1, int)
    return VideoInfo(times, start, fps, bool(container.streams.audio), exact_seek, numbers, codec, open_groups, stamped)
