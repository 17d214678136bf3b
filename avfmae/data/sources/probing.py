"""What a media file says without being decoded: when each frame is shown, where decoding can begin, whether it is complete."""

import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

import av
import numpy as np
from av.stream import Disposition

from avfmae.data.sources.bitstream import BACKWARD, IN_ORDER, begins_anew, is_backward, is_packed, is_reset, length_size
from avfmae.data.sources.source import LARGEST_FRAME, MediaError, VideoInfo, as_media_error

av.logging.set_level(av.logging.PANIC)  # our own errors say what is wrong with a file

LONGEST = 86_400.0  # seconds; a file whose stamps claim more is broken
NOMINAL_FPS = 25.0  # of frame images and of sound alone, which carry no frame times
SEEKABLE = {"mov", "mp4", "matroska", "webm", "flv"}  # containers that seek by the stamps of showing; others by those of decoding
UNSHOWN = {"avi", "asf"}  # containers that stamp packets with the time of decoding alone
JUMPING = {"mpegts", "mpeg"}  # containers of recordings, whose clocks may jump
JUMP = (-1.0, 10.0)  # seconds back and ahead from which a clock has jumped
PICTURES = Disposition.attached_pic | Disposition.timed_thumbnails  # tracks that are no video
PLAYLISTS = (b"#EXTM3U", b"ffconcat", b"[playlist]", b"<?xml", b"<MPD", b"v=0", b"<smil", b"<asx", b"<ASX")


def open_media(path: str) -> av.container.InputContainer:
    """The opened file.

    Raises:
        MediaError: there is none, it is empty, a playlist, or no media file.
    """
    if not os.path.exists(path):
        raise MediaError(path, "no such file")
    if not os.path.isfile(path):
        raise MediaError(path, "is no file")
    with as_media_error(path, "cannot be opened"), open(path, "rb") as file:
        head = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
    if not head and not os.path.getsize(path):
        raise MediaError(path, "the file is empty")
    if head.startswith(PLAYLISTS):
        raise MediaError(path, "is a playlist, which names other files; list those")
    with as_media_error(path, "is no readable media file"):
        return av.open(f"file:{path}")  # or a name with a colon would be taken for an address


def formats(container: av.container.InputContainer) -> set[str]:
    return set(container.format.name.split(","))


def choose(streams: Iterable[Any], name: str | None = None) -> Any:
    """The track that a player takes: the one that is named by its language or number, else the default one, else the first."""
    there = [s for s in streams if s.codec_context is not None and not s.disposition & PICTURES]
    if name is not None:
        there = there[int(name) :][:1] if name.isdecimal() else [s for s in there if s.language == name]
    return next((s for s in there if s.disposition & Disposition.default), there[0] if there else None)


def continuous(container: av.container.InputContainer, *tracks: Any) -> Iterator[av.Packet]:
    """The packets of the tracks, or of all. Where the clock of a recording jumps, what follows is shifted to where it was going.

    Tracks jump one after the other, and by the same: each takes the shift that another has found, if that fits.
    """
    if not formats(container) & JUMPING:
        yield from container.demux(*tracks)
        return
    shifts, which, latest = [0.0], {}, {}
    for packet in container.demux():
        if packet.dts is not None:
            base, track = float(packet.time_base), packet.stream.index
            time, due = packet.dts * base, latest.get(track, packet.dts * base)
            place = which.get(track, 0)
            fitting = [k for k in range(place, len(shifts)) if JUMP[0] < time + shifts[k] - due < JUMP[1]]
            if not fitting:
                shifts.append(due - time)
            which[track] = place = fitting[0] if fitting else len(shifts) - 1
            latest[track] = time + shifts[place] + (packet.duration or 0) * base
            if place:
                shift = round(shifts[place] / base)
                packet.dts, packet.pts = packet.dts + shift, None if packet.pts is None else packet.pts + shift
                packet.opaque = "jumped"
        if not tracks or packet.stream in tracks:
            yield packet


@dataclass
class Index:
    """Where the frames and the sound of a media file lie. Stamps are in ticks of the video's time base.

    Attributes:
        info: what the source says of itself.
        codec: of the video, by its canonical name; "" where there is none.
        video, sound: numbers of the tracks; None: there is none.
        stamps: (n,) of all frames, in the order of showing.
        exact: a frame's number follows from its stamp; else from its place behind a key frame.
        keys: stamp and size of the packets at which decoding can begin -> the number of the frame.
        targets: for each number of a key frame the stamp to seek, or the byte.
        by_bytes: targets are bytes.
        late: the file begins between key frames; what is before the first is not there.
        open_groups: whether an H.264 key frame is there that frames coded after it look back across.
        decoding: stamps are those of decoding.
        jumps: the clock jumps, so that the file is read from its beginning.
        flags: as of a source.
    """

    info: VideoInfo
    codec: str = ""
    video: int | None = None
    sound: int | None = None
    stamps: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    exact: bool = True
    keys: dict[tuple[int, int], int] = field(default_factory=dict)
    targets: dict[int, int] = field(default_factory=dict)
    late: bool = False
    open_groups: bool = False
    decoding: bool = False
    by_bytes: bool = False
    jumps: bool = False
    flags: tuple[str, ...] = ()

    def stamp(self, packet: av.Packet) -> int | None:
        return packet.dts if self.decoding or packet.pts is None else packet.pts

    def seek(self, container: av.container.InputContainer, key: int) -> None:
        """Goes to the key frame of this number."""
        if self.by_bytes:
            container.seek(self.targets[key], unsupported_byte_offset=True)
        else:
            container.seek(self.targets[key], stream=container.streams[self.video])

    def starts(self, number: int) -> Iterator[int]:
        """The key frames to begin at for a frame: the last before it, then ever earlier ones, at the end 0 for the file's start.

        Containers mark key frames wrongly, and their indices mislead: where a wanted frame does not come, decoding begins
        earlier.
        """
        numbers = list(self.targets)
        place, back = bisect_right(numbers, number) - 1, 0
        while place - back >= 0 and numbers[place - back]:
            yield numbers[place - back]
            back = 2 * back + 1
        yield 0


CACHED = 1_000_000  # frames of the files whose indices are kept, 16 bytes and more each
_cache: OrderedDict[tuple[str, str | None], Index] = OrderedDict()  # the latest at the end


def probe(path: str, sound_track: str | None = None) -> Index:
    """Reads when a video's frames are shown, without decoding it. Sound alone gets the times that a video beside it would have.

    Raises:
        MediaError: missing, empty, truncated, or neither video nor sound.
    """
    if (index := _cache.pop((path, sound_track), None)) is None:
        found = _Packets()
        with as_media_error(path, lambda: f"breaks off after {len(found.stamps)} frames"), open_media(path) as container:
            index = probe_container(path, container, found, sound_track)
        room = CACHED - len(index.info.times)
        while _cache and sum(len(kept.info.times) for kept in _cache.values()) > room:
            _cache.popitem(last=False)
    _cache[path, sound_track] = index
    return index


def forget() -> None:
    """Forgets what was read of files."""
    _cache.clear()


@dataclass
class _Packets:
    """What the packets of the chosen track say, in the order of coding.

    Attributes:
        stamps: of showing, or of decoding where that is all there is. sizes: in bytes.
        keys: places at which decoding can begin -> (what to seek, whether nothing coded later is shown before).
        backward: places of B pictures, for codecs in which these tell the order of showing.
        first: place and stamp of the first packet that the container marks as a key frame; an edit list may hide it.
        guessed: a packet has no stamp of showing. bare: packets without any stamp. packed: packets of two pictures are there.
        shown: when the last frame ends. end: when the last packet of any track ends, in seconds.
    """

    stamps: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    keys: dict[int, tuple[int, bool]] = field(default_factory=dict)
    backward: set[int] = field(default_factory=set)
    first: tuple[int, int] | None = None
    guessed: bool = False
    bare: int = 0
    shown: int = 0
    end: float = 0.0
    open_groups: bool = False
    packed: bool = False


def probe_container(path: str, container: av.container.InputContainer, found: _Packets, sound_track: str | None = None) -> Index:
    """As :func:`probe`; ``found`` is filled as packets are read."""
    video, sound = choose(container.streams.video), choose(container.streams.audio, sound_track)
    stream = sound if video is None else video
    if stream is None:
        raise MediaError(path, "has no video track" + (f", and no sound track {sound_track!r}" if sound_track else ""))
    codec = stream.codec_context
    if video is not None and codec.width * codec.height > LARGEST_FRAME:
        raise MediaError(path, f"claims frames of {codec.width} x {codec.height} pixels")
    kind = formats(container)
    index = Index(VideoInfo(np.zeros(0), 0.0, 0.0, sound is not None), decoding=bool(kind & UNSHOWN), by_bytes="flv" in kind)
    index.sound = None if sound is None else sound.index
    _walk(container, stream, index, found)
    if found.bare and not found.stamps:  # a stream without a container
        found.stamps, found.bare = [0], found.bare - 1
    if not found.stamps:
        raise MediaError(path, "has no frames")
    flags = _check_complete(path, container, stream, found)
    start = (container.start_time or 0) / av.time_base
    if video is None:
        times = start + np.arange(max(1, int((found.end - start) * NOMINAL_FPS))) / NOMINAL_FPS
        index.info = VideoInfo(times, start, NOMINAL_FPS, has_audio=True, has_video=False)
        return index
    index.codec, index.video = codec.codec.canonical_name, stream.index
    _order(index, stream, found, "mpeg" in kind)
    base = float(stream.time_base)
    times = index.stamps * base
    if times[-1] - times[0] > LONGEST:
        raise MediaError(path, f"claims to last {times[-1] - times[0]:.3g} s")
    fps = (len(times) - 1) / (times[-1] - times[0]) if times[-1] > times[0] else float(stream.average_rate or NOMINAL_FPS)
    if "asf" in kind and len(times) > 1:
        times = times + _delay(container, stream, found) / fps
    index.info = VideoInfo(times, start, fps, sound is not None)
    flags += ["stamps-repeat"] * (not found.bare and len(set(found.stamps)) < len(found.stamps))
    index.flags = (*flags, *["begins-between-key-frames"] * index.late, *["stamps-jump"] * index.jumps)
    return index


def _walk(container: av.container.InputContainer, stream: Any, index: Index, found: _Packets) -> None:
    """Reads all packets."""
    codec, is_video = stream.codec_context.codec.canonical_name, stream.type == "video"
    size, seek_shown = length_size(stream) if is_video else 0, bool(formats(container) & SEEKABLE)
    for packet in continuous(container):
        stamp = index.stamp(packet)
        if stamp is None:
            found.bare += packet.stream is stream and packet.size > 0 and not seek_shown
            continue
        found.end = max(found.end, float((stamp + (packet.duration or 0)) * packet.time_base))
        index.jumps |= packet.opaque == "jumped"
        if packet.stream is not stream or not packet.size:
            continue
        place = len(found.stamps)
        if found.first is None and packet.is_keyframe:
            found.first = place, stamp
        if packet.is_discard:  # an edit list hides it
            continue
        found.stamps.append(stamp)
        found.sizes.append(packet.size)
        found.shown = max(found.shown, stamp + (packet.duration or 0))
        found.guessed |= packet.pts is None
        if is_video and codec in BACKWARD:
            found.packed |= is_packed(packet, codec)
            if is_backward(packet, codec):
                found.backward.add(place)
        if is_video and packet.is_keyframe:
            alone = codec in BACKWARD or codec in IN_ORDER or is_reset(packet, codec, size)
            found.open_groups |= codec == "h264" and not alone
            if begins_anew(packet, codec, size):
                target = stamp if seek_shown or packet.dts is None else packet.dts
                found.keys[place] = (packet.pos if index.by_bytes else target, alone)


def _check_complete(path: str, container: av.container.InputContainer, stream: Any, found: _Packets) -> list[str]:
    """Compares what is there with what the headers promise. Returns flags.

    Raises:
        MediaError: frames or seconds are missing.
    """
    stamps, kind, count = found.stamps, formats(container), len(found.stamps)
    until = None if stream.duration is None else (stream.start_time or 0) + stream.duration  # without what an edit list hides
    a_frame = (max(stamps) - min(stamps)) / max(1, count - 1)
    missing = []
    if stream.frames > count + 1 and (until is None or until - found.shown > a_frame):
        missing.append(f"is truncated: {count} of {stream.frames} frames are there")
    expected = (container.duration or 0) / av.time_base
    if "matroska" not in kind:  # whose duration counts from zero
        expected += (container.start_time or 0) / av.time_base
    if expected - found.end > max(0.5, 0.1 * expected) and not kind & JUMPING:
        missing.append(f"is truncated: {found.end:.2f} of {expected:.2f} s are there")
    if missing and "avi" not in kind:  # whose header is often written before the frames, and never again
        raise MediaError(path, missing[0])
    return ["header-promises-more"] * bool(missing)


def _order(index: Index, stream: Any, found: _Packets, guessing: bool) -> None:
    """Numbers the frames in the order of showing, and the key frames among them.

    Args:
        guessing: many stamps are guesses, as those of a program stream.
    """
    # what is before the first key frame, or leads to it, needs what is not there
    first, begin = found.first or (0, min(found.stamps))
    count, index.open_groups = len(found.stamps), found.open_groups
    leading = {k: sum(1 for _ in takewhile(found.backward.__contains__, range(k + 1, count))) for k in found.keys}
    lost = leading.get(first, 0) if found.first and found.stamps[first] == begin else 0
    index.late = first > 0 or lost > 0
    stamps, reorders = np.array(found.stamps), bool((np.diff(found.stamps) < 0).any())
    # stamps in the order of coding, as a copy from AVI or ASF has them, are not those of showing
    index.exact = not (
        guessing or index.decoding or found.guessed or found.bare or len(set(found.stamps)) < count
        or (getattr(stream.codec_context, "has_b_frames", False) and not reorders)
    )  # fmt: skip
    step = float(1 / (stream.average_rate * stream.time_base)) if stream.average_rate else 0.0
    if found.bare and step:  # frames follow one another at their nominal rate
        index.stamps = min(stamps) + _rounded(np.arange(count + found.bare) * step)
    elif index.exact:
        kept = stamps[first:]
        index.stamps = np.sort(kept[kept >= begin])
    else:
        index.stamps = np.sort(stamps[[k for k in range(first, count) if not first < k <= first + lost]])
        grid = index.stamps[0] + _rounded(np.arange(len(index.stamps)) * step)
        if guessing and grid[-1] == index.stamps[-1] and np.abs(index.stamps - grid).max() < 5 * step:
            index.stamps = grid  # guesses some frames off, of a constant rate
    if index.jumps or found.bare or found.packed:
        return
    for place, (target, alone) in found.keys.items():
        if index.exact:
            number = int(np.searchsorted(index.stamps, stamps[place]))
        elif alone:
            number = place - first + leading[place] - lost
        else:
            continue
        index.keys[found.stamps[place], found.sizes[place]] = number
        index.targets[number] = target
    if len(index.keys) < len(index.targets):  # two that cannot be told apart
        index.keys, index.targets = {}, {}


def _rounded(ticks: np.ndarray) -> np.ndarray:
    return np.rint(ticks).astype(np.int64)


def _delay(container: av.container.InputContainer, stream: Any, found: _Packets) -> int:
    """By how many frames the decoder lags behind, where stamps are those of decoding and the first one is of the first frame."""
    if (np.diff(found.stamps) < 0).any() or stream.codec_context.codec.canonical_name in IN_ORDER:
        return 0  # the stamps are those of showing
    container.seek(0)
    for given, packet in enumerate(p for p in container.demux(stream) if p.size):
        if packet.decode():
            return given
    return 0
