"""A clip of a prepared set: single frames and sounds are found in a tar shard by the index beside it.

The path is ``FOLDER/000003.tar/KEY``; ``FOLDER`` may be any URL that fsspec opens. :mod:`avfmae.data.shards` writes such sets and
says why their format is as it is.
"""

import hashlib
import json
import os
from collections import OrderedDict
from functools import lru_cache
from pathlib import Path
from zlib import crc32

import av
import numpy as np
from safetensors.numpy import load

from avfmae.data.arena import Arena
from avfmae.data.config import SAMPLE_RATE, Preparation
from avfmae.data.sources.source import MediaError, Source, VideoInfo, as_media_error, register

REFERENCE, KEY, DISPOSABLE = 0, 1, 2  # kinds of frames in an index
WAV_HEADER = 44  # bytes of a stored wav file before its samples
SOUND_BLOCK = 8192  # bytes of a sound that a checksum is kept of
OPEN_SHARDS = 64  # files and their indices that a process keeps at the most
OPEN_BYTES = 1 << 26  # of these indices
DAMAGED = "not as it was stored: the shard is damaged, and the command that prepared the set makes it anew"


def crcs(sound: bytes | memoryview) -> list[int]:
    """CRC-32 of each SOUND_BLOCK bytes."""
    return [crc32(sound[at : at + SOUND_BLOCK]) for at in range(0, len(sound), SOUND_BLOCK)]


def index_crc(arrays: dict[str, np.ndarray], clips: str) -> int:
    """CRC-32 of an index: its arrays but this one, their names, types and shapes, and the rows of its clips."""
    total = crc32(clips.encode())
    for name in sorted(arrays.keys() - {"index_crc"}):
        array = np.ascontiguousarray(arrays[name])
        total = crc32(array.view(np.uint8), crc32(f"{name} {array.dtype} {array.shape}".encode(), total))
    return total


class Shard:
    """A tar file and its index.

    Args:
        path: of the tar file; the index lies beside it, with the suffix ``.index``.
    """

    def __init__(self, path: str):
        self.path = path
        with as_media_error(path, "is no shard of a prepared set"):
            if "://" in path:
                import fsspec

                filesystem, where = fsspec.core.url_to_fs(path)
                self._read = lambda start, end: filesystem.cat_file(where, start, end)
                index = filesystem.cat_file(f"{where.removesuffix('.tar')}.index")
            else:
                file = open(path, "rb", buffering=0)  # noqa: SIM115  (closed when the shard is forgotten)
                self._read = lambda start, end: os.pread(file.fileno(), end - start, start)
                index = Path(path).with_suffix(".index").read_bytes()
        self.size = 3 * len(index)  # bytes in memory, about: arrays as stored, and the rows as objects
        with as_media_error(path, "its index does not open"):
            self.index = load(index)
            clips = json.loads(index[8 : 8 + int.from_bytes(index[:8], "little")])["__metadata__"]["clips"]
            self.is_checked = "crc" in self.index or "index_crc" in self.index  # the first sets had no checksums
            if self.is_checked and self.index["index_crc"].tolist() != [index_crc(self.index, clips)]:
                raise ValueError("it is not as it was stored")
            self.rows = json.loads(clips)
            how = self.index.get("preparation")  # which the first sets did not store
            self.preparation = None if how is None else Preparation.of(json.loads(how.tobytes()))
        self.places = {row["key"]: i for i, row in enumerate(self.rows)}

    def read(self, start: int, end: int) -> bytes:
        """Bytes ``start`` to ``end`` of the tar file.

        Raises:
            MediaError: they cannot be read, or are not there.
        """
        with as_media_error(self.path, "cannot be read"):
            data = self._read(start, end)
        if len(data) != end - start:
            raise MediaError(self.path, f"is truncated: bytes {start} to {end} are not all there")
        return data


OPENED: OrderedDict[str, Shard] = OrderedDict()  # the latest at the end


def open_shard(path: str) -> Shard:
    if (shard := OPENED.pop(path, None)) is None:
        shard = Shard(path)
        while OPENED and (len(OPENED) >= OPEN_SHARDS or shard.size + sum(s.size for s in OPENED.values()) > OPEN_BYTES):
            OPENED.popitem(last=False)
    OPENED[path] = shard
    return shard


def open_prepared(path: str) -> "PreparedClip":
    """The clip at ``FOLDER/SHARD.tar/KEY``.

    Raises:
        MediaError: the shard, its index or the clip is not there, or the index is damaged.
    """
    shard = open_shard(path.rpartition("/")[0])
    if (place := shard.places.get(path.rpartition("/")[2])) is None:
        raise MediaError(path, f"{shard.path} holds no such clip")
    return PreparedClip(path, shard, place)


@register
class PreparedClip(Source):
    """One clip of a shard; nothing of it is read before it is asked for. Times are from zero at the first frame."""

    is_cropped = True

    def __init__(self, path: str, shard: Shard, place: int):
        super().__init__(path)
        self.archive, self.stored, self.preparation, index = shard, shard.rows[place], shard.preparation, shard.index
        mine = slice(*index["packets"][place : place + 2])
        self.offset, self.size, self.number, self.kind = (index[n][mine] for n in ("offset", "size", "number", "kind"))
        self.setup = index["setups"][slice(*index["setup"][place])].tobytes()
        self.members = index["members"][place].tolist()
        self.crc = index["crc"][mine].tolist() if shard.is_checked else None
        self.sound_crc = (
            index["sound_crc"][slice(*index["sound_blocks"][place : place + 2])].tolist() if shard.is_checked else None
        )
        self.sound_at, self.samples = self.members[2] + WAV_HEADER, max(0, self.members[3] - WAV_HEADER) // 2
        times = index["time"][mine]
        fps = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else float(self.stored["fps"])
        self._info = VideoInfo(times, 0.0, fps, self.samples > 0)

    @classmethod
    def takes(cls, path: str) -> bool:
        return ".tar/" in path

    @classmethod
    def open(cls, path: str) -> "PreparedClip":
        return open_prepared(path)

    @classmethod
    def shard(cls, path: str) -> str:
        return path.rpartition("/")[0]

    @property
    def info(self) -> VideoInfo:
        return self._info

    def frames(self, numbers, arena=None):
        """As the interface says; the same frames that decoding all of the clip in order gives."""
        rows: dict[int, list[int]] = {}  # of each frame number
        for row, number in enumerate(self.checked(numbers).tolist()):
            rows.setdefault(number, []).append(row)
        places, shown = np.arange(len(self.number)), np.isin(self.number, list(rows))
        group = np.cumsum(self.kind == KEY)  # a key frame and what follows it, in the order of decoding
        last = np.full(group[-1] + 1, -1)
        np.maximum.at(last, group[shown], places[shown])  # of each group's packets; nothing of the other groups is needed
        needed = places[(places <= last[group]) & (shown | (self.kind != DISPOSABLE))]
        begin, end = int(self.offset[needed[0]]), int(self.offset[needed[-1]] + self.size[needed[-1]])
        data = memoryview(self.archive.read(begin, end))
        decoder = _decoder(self.setup)
        decoder.flush_buffers()  # of what a broken stream may have left
        collected = _Frames(rows, arena)
        with as_media_error(self.path, "does not decode"):
            for place in needed:
                at = int(self.offset[place]) - begin
                stored = data[at : at + int(self.size[place])]
                if self.crc is not None and crc32(stored) != self.crc[place]:
                    raise MediaError(self.path, f"frame {self.number[place]} of {len(self.number)} is {DAMAGED}")
                packet = av.Packet(stored)
                packet.pts = int(self.number[place])
                collected.take(decoder.decode(packet))
            collected.take(decoder.decode(None))
        if collected.missing:
            raise MediaError(self.path, f"frame {min(collected.missing)} of {len(self.number)} does not decode")
        return collected.out

    def damaged(self):
        starts, sizes = self.members[::2], self.members[1::2]
        return [
            part for part, start, size in zip(("video", "sound"), starts, sizes, strict=True)
            if (stored := self.stored.get(f"{part}_sha256"))
            and hashlib.sha256(self.archive.read(start, start + size)).hexdigest() != stored
        ]  # fmt: skip

    def digest(self):
        return self.stored.get("source_sha256")

    def sound(self, start, end):
        if not self.samples:
            raise MediaError(self.path, "has no audio track")
        low, high = (min(max(0, round(t * SAMPLE_RATE)), self.samples) for t in (start, end))
        first, last = low * 2 // SOUND_BLOCK, -(-high * 2 // SOUND_BLOCK)  # blocks, of which sums are kept
        begin, end = first * SOUND_BLOCK, min(last * SOUND_BLOCK, 2 * self.samples)
        data = self.archive.read(self.sound_at + begin, self.sound_at + max(begin, end))
        if self.sound_crc is not None and crcs(data) != self.sound_crc[first:last]:
            raise MediaError(self.path, f"the sound at {low / SAMPLE_RATE:.2f} s is {DAMAGED}")
        return np.frombuffer(data, "<i2")[low - begin // 2 : high - begin // 2].astype(np.float32) / 32768


class _Frames:
    """Collects the wanted frames as RGB, in the array that is returned.

    Args:
        rows: frame number -> rows of ``out`` that show it. arena: where ``out`` is to lie.
    """

    def __init__(self, rows: dict[int, list[int]], arena: Arena | None):
        self.rows, self.missing, self.arena = rows, set(rows), arena or Arena(1)
        self.out = self.planes = None

    def take(self, frames: list[av.VideoFrame]) -> None:
        import cv2  # here, so that training on a GPU does without it where no set is prepared

        for frame in frames:
            if frame.pts not in self.rows:
                continue
            height, width = frame.height, frame.width
            if self.out is None:
                self.out = self.arena.place((sum(map(len, self.rows.values())), height, width, 3))
                self.planes = np.empty(height * width * 3 // 2, np.uint8)  # as OpenCV wants them: without gaps
            if self.out.shape[1:3] != (height, width):
                raise ValueError(f"a frame has {width} x {height} pixels, others {self.out.shape[2]} x {self.out.shape[1]}")
            at = 0
            for plane in frame.planes:
                pixels = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: plane.height, : plane.width]
                self.planes[at : at + pixels.size].reshape(pixels.shape)[:] = pixels
                at += pixels.size
            i420 = self.planes.reshape(height * 3 // 2, width)
            first, *others = self.rows[frame.pts]
            cv2.cvtColor(i420, cv2.COLOR_YUV2RGB_I420, dst=self.out[first])
            self.out[others] = self.out[first]
            self.missing.discard(frame.pts)


@lru_cache(maxsize=4)
def _decoder(setup: bytes) -> av.CodecContext:
    """A decoder for streams of this set-up; all clips of a set share one, and its frame memory with it."""
    decoder = av.CodecContext.create("h264", "r")
    decoder.extradata, decoder.thread_count = setup, 1
    return decoder
