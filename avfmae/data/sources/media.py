"""A media file as a clip: PyAV decodes it.

A frame's number is its place in the order of showing. Time stamps give it or, where they repeat or are not those of showing
(AVI), the order in which frames come from a key frame on. A window is decoded from the last key frame before it at which
decoding may begin, and H.264's frames that are neither wanted nor needed by others are left out. Either way a frame is bit for
bit what decoding the whole file gives.

decord is there for those who ask for it, and reads only what it reads rightly (``DECORD_EXACT``): where frames are shown before
the key frame that they are coded after, it gives wrong ones without an error.
"""

import os
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import Type
from av.video.reformatter import VideoReformatter

from avfmae.data.sources.bitstream import is_disposable, length_size
from avfmae.data.sources.probing import SEEKABLE, Index, continuous, formats, open_media, probe
from avfmae.data.sources.sound import read_sound
from avfmae.data.sources.source import MediaError, Source, VideoInfo, as_media_error
from avfmae.extras import need
from avfmae.files import digest

DECORD_EXACT = {"h264", "vp8", "vp9", "av1", "mjpeg", "prores", "ffv1", "flv1"}
"""Codecs of which decord gives the right frames, in ``SEEKABLE`` containers, H.264 without open groups."""
BACKENDS = ("auto", "pyav", "decord")


class MediaFile(Source):
    """A file that PyAV opens, with video, sound or both; what no other source takes."""

    suffixes = frozenset(
        (".mp4", ".mkv", ".webm", ".flv", ".mov", ".avi", ".mpg", ".mpeg", ".m4v", ".wmv", ".3gp", ".ts", ".ogv", ".mts",
         ".m2ts", ".asf", ".vob", ".dv", ".3g2")
    )  # fmt: skip

    @property
    def index(self) -> Index:
        index = probe(self.path, self.sound_track)
        self.flags |= {*index.flags}
        return index

    @property
    def info(self) -> VideoInfo:
        return self.index.info

    def frames(self, numbers, arena=None, backend: str = "auto"):
        """As the interface says.

        Args:
            backend: ``"pyav"``; ``"decord"``, for streams of which it gives the right frames; or ``"auto"``, which is PyAV: it
                gives the right frames of all, and decord gains nothing.
        """
        if backend not in BACKENDS:
            raise ValueError(f"backend: got {backend!r}, expected one of {', '.join(map(repr, BACKENDS))}")
        self.check_video()
        numbers = self.checked(numbers)
        if backend == "decord":
            return self._read_decord(numbers)
        wanted, rows = np.unique(numbers, return_inverse=True)
        shown = list(self._shown(wanted.tolist()))
        out = None if arena is None else arena.place((len(numbers), *shown[0].shape))
        return np.stack([shown[row] for row in rows], out=out)

    def sound(self, start, end):
        return read_sound(self.path, self.index, start, end, self.flags)

    def frames_between(self, low, high):
        self.check_video()
        return self._shown(range(low, high))

    def size_hint(self):
        return os.path.getsize(self.path) if os.path.isfile(self.path) else 0

    def digest(self):
        return digest([self.path]) if os.path.isfile(self.path) else None

    def check_video(self) -> None:
        if not self.info.has_video:
            raise MediaError(self.path, "has no video track")

    def _read_decord(self, numbers: np.ndarray) -> np.ndarray:
        index = self.index
        with open_media(self.path) as container:
            can_seek = bool(formats(container) & SEEKABLE)
        if can_seek and index.exact and index.codec in DECORD_EXACT and not index.open_groups:
            decord = need("decord", "decord", "backend='decord'")
            with as_media_error(self.path, "decord cannot read it"):
                reader = decord.VideoReader(self.path, num_threads=1)
                if len(reader) != len(index.stamps):
                    raise ValueError(f"decord counts {len(reader)} frames, the container {len(index.stamps)}")
                frames = reader.get_batch(numbers.tolist()).asnumpy()
            if np.array_equal(frames[0], self.frames(numbers[:1])[0]):  # it mirrors and stretches nothing
                return frames
        raise MediaError(self.path, f"decord gives wrong frames of such files ({index.codec}); read it with backend='pyav'")

    def _shown(self, numbers: Sequence[int]) -> Iterator[np.ndarray]:
        """The frames of ascending numbers, one after the other.

        Raises:
            MediaError: one of them does not decode.
        """
        index, given, wanted = self.index, 0, numbers if isinstance(numbers, range) else set(numbers)
        for begin in index.starts(numbers[0]):
            try:
                for number, frame in _decoded(self, index, begin, wanted):
                    if number > numbers[given]:
                        break
                    if number == numbers[given]:
                        given += 1
                        yield frame
                        if given == len(numbers):
                            return
            except MediaError:
                if not begin:
                    raise
        raise MediaError(self.path, f"frame {numbers[given]} of {len(index.stamps)} does not decode")


def _decoded(source: MediaFile, index: Index, begin: int, wanted: Collection[int]) -> Iterator[tuple[int, np.ndarray]]:
    """(number, frame) of the wanted frames from key frame ``begin`` on, or from the file's beginning where that is 0."""
    with as_media_error(source.path, "does not decode"), open_media(source.path) as container:
        stream = container.streams[index.video]
        stream.thread_type = "NONE"
        if begin:
            index.seek(container, begin)
        size = length_size(stream) if index.codec == "h264" and index.exact else 0
        picture = _Picture(source, stream, 1 if isinstance(wanted, range) else len(wanted))  # those of a range go by one by one
        begun, number = not begin and not index.late, None
        for packet in continuous(container, stream):
            # Theora repeats a frame by an empty packet; an empty one without a stamp flushes the decoder
            if not packet.size and packet.dts is not None:
                continue
            if not begun:
                place = index.keys.get((index.stamp(packet), packet.size), -1)
                if place > begin:
                    return  # the seek ended too late
                if place < begin or (not begin and not packet.is_keyframe):
                    continue
                begun = True
            skippable = size and packet.size and packet.pts is not None
            if skippable and _nearest(index.stamps, packet.pts) not in wanted and is_disposable(packet, size):
                continue
            for frame in packet.decode():
                if index.exact:
                    if frame.pts is None or frame.pts < index.stamps[0]:  # of no time, or it needs what was cut off the file
                        continue
                    number = _nearest(index.stamps, frame.pts)
                elif number is not None:
                    number += 1
                elif frame.key_frame or not (begin or index.late):
                    number = begin
                # frames before the key frame are leading ones, which it does not make decodable
                if number is not None and number >= begin and number in wanted:
                    yield number, picture(frame)


def _nearest(stamps: np.ndarray, stamp: int) -> int:
    """The number of the frame whose stamp is nearest."""
    after = int(np.searchsorted(stamps, stamp))
    before = after == len(stamps) or (after and stamp - stamps[after - 1] < stamps[after] - stamp)
    return after - 1 if before else after


_reformatter = VideoReformatter()  # making one for every frame takes longer than its work


class _Picture:
    """Makes the picture of a frame that a player shows: RGB, of square pixels, turned and mirrored as the file says, and as large
    as the file's first one.

    Args:
        count: how many there will be.
    """

    def __init__(self, source: MediaFile, stream: av.VideoStream, count: int):
        self.source, self.width, self.height = source, stream.codec_context.width, stream.codec_context.height
        aspect = stream.sample_aspect_ratio or 1
        self.shown = round(self.width * aspect)
        source.check_size(min(count, 1 << 10), self.shown, self.height)

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        if (frame.width, frame.height) != (self.width, self.height):
            self.source.flags.add("picture-size-changes")
        rgb = _reformatter.reformat(frame, self.shown, self.height, format="rgb24").to_ndarray()
        matrix: Any = frame.side_data.get(Type.DISPLAYMATRIX)
        if matrix is None:
            return rgb
        a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()  # a pixel at (x, y) is shown at (ax + cy, bx + dy)
        if abs(b) + abs(c) > abs(a) + abs(d):
            rgb, a, d = rgb.swapaxes(0, 1), c, b
        return rgb[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
