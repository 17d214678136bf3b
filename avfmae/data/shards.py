"""A prepared set: tar shards that WebDataset reads, and beside each an index by which single frames and sounds are found.

A clip of a prepared set has the path ``FOLDER/000003.tar/KEY``. ``FOLDER`` may be any URL that fsspec opens. The tar holds, for
each clip, ``KEY.mp4`` (H.264, faces cropped, one size for all), ``KEY.wav`` (16 kHz mono, 16 bits, its first sample at the first
frame) and ``KEY.json`` (the manifest's row). docs/data.md tells the format.

*Why this format.* Training takes every fourth frame. In the stored stream every fourth frame is predicted from the fourth before,
and the three between them from these two neighbours and from nothing else: they are *disposable*. So a window of 16 frames at
stride 4 decodes the chain of fourth frames, and of the others only those that it shows: about 32 frames in place of 61 and what
precedes them. The stream is an ordinary one, which any player plays; other strides and counts only decode more of it.
"""

import hashlib
import io
import json
import os
import tarfile
import wave
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import av
import numpy as np
from safetensors.numpy import load, save

from avfmae.data.bitstream import is_disposable
from avfmae.data.media import SAMPLE_RATE, Arena, MediaError, VideoInfo, blaming
from avfmae.files import atomic_write

STRIDE = 4  # frames from one that others depend on to the next
KEY_INTERVAL = 32  # frames from one at which decoding can begin to the next
TICKS = 90_000  # of a frame's time stamp, a second
REFERENCE, KEY, DISPOSABLE = 0, 1, 2
OPEN_SHARDS = 64  # indices and files that a process keeps


def is_inside(path: str) -> bool:
    """Whether a path names a clip of a prepared set."""
    return ".tar/" in path


def shard_numbers(paths: Sequence[str]) -> tuple[int, ...] | None:
    """A number for each clip's shard; None where not all of them are in prepared sets."""
    if not all(map(is_inside, paths)):
        return None
    numbers: dict[str, int] = {}
    return tuple(numbers.setdefault(path.rpartition("/")[0], len(numbers)) for path in paths)


@lru_cache(maxsize=4096)
def open_clip(path: str) -> "StoredClip":
    """The clip at ``FOLDER/SHARD.tar/KEY``.

    Raises:
        MediaError: the shard, its index or the clip is not there, or the index is damaged.
    """
    shard, _, key = path.rpartition("/")
    return _open_shard(shard).clip(path, key)


@lru_cache(maxsize=OPEN_SHARDS)
def _open_shard(path: str) -> "Shard":
    return Shard(path)


class Shard:
    """A tar file and its index.

    Args:
        path: of the tar file; the index lies beside it, with the suffix ``.index``.
    """

    def __init__(self, path: str):
        self.path = path
        with blaming(path, "is no shard of a prepared set"):
            if "://" in path:
                import fsspec

                filesystem, where = fsspec.core.url_to_fs(path)
                self._read = lambda start, end: filesystem.cat_file(where, start, end)
                index = filesystem.cat_file(f"{where.removesuffix('.tar')}.index")
            else:
                file = open(path, "rb", buffering=0)  # noqa: SIM115  (closed when the shard is forgotten)
                self._read = lambda start, end: os.pread(file.fileno(), end - start, start)
                index = Path(path).with_suffix(".index").read_bytes()
        with blaming(path, "its index does not open"):
            self.index = load(index)
            header = json.loads(index[8 : 8 + int.from_bytes(index[:8], "little")])
            self.rows = json.loads(header["__metadata__"]["clips"])
        self.places = {row["key"]: i for i, row in enumerate(self.rows)}

    def read(self, start: int, end: int) -> bytes:
        """Bytes ``start`` to ``end`` of the tar file.

        Raises:
            MediaError: they cannot be read, or are not there.
        """
        with blaming(self.path, "cannot be read"):
            data = self._read(start, end)
        if len(data) != end - start:
            raise MediaError(self.path, f"is truncated: bytes {start} to {end} are not all there")
        return data

    def clip(self, path: str, key: str) -> "StoredClip":
        if key not in self.places:
            raise MediaError(path, f"{self.path} holds no such clip")
        return StoredClip(path, self, self.places[key])


class StoredClip:
    """One clip of a shard; nothing of it is read before it is asked for.

    Attributes:
        row: of the manifest. info: frame times, from zero at the first frame.
    """

    def __init__(self, path: str, shard: Shard, place: int):
        self.path, self.shard, self.row = path, shard, shard.rows[place]
        index = shard.index
        mine = slice(*index["packets"][place : place + 2])
        self.offset, self.size, self.number, self.kind = (index[n][mine] for n in ("offset", "size", "number", "kind"))
        self.setup = index["setups"][slice(*index["setup"][place])].tobytes()
        self.members = index["members"][place].tolist()
        self.sound_at, self.samples = self.members[2] + WAV_HEADER, max(0, self.members[3] - WAV_HEADER) // 2
        times = index["time"][mine]
        fps = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else float(self.row["fps"])
        self.info = VideoInfo(times, 0.0, fps, self.samples > 0, True, np.sort(self.number[self.kind == KEY]), "h264")

    def frames(self, indices: Sequence[int] | np.ndarray, arena: Arena | None = None) -> np.ndarray:
        """(len(indices), H, W, 3) uint8 RGB, the same that decoding all of the clip in order gives; in the arena, if there is
        one.

        Raises:
            MediaError: they do not decode.
        """
        rows: dict[int, list[int]] = {}  # of each frame number
        for row, number in enumerate(np.asarray(indices).tolist()):
            rows.setdefault(number, []).append(row)
        places, shown = np.arange(len(self.number)), np.isin(self.number, list(rows))
        group = np.cumsum(self.kind == KEY)  # a key frame and what follows it, in the order of decoding
        last = np.full(group[-1] + 1, -1)
        np.maximum.at(last, group[shown], places[shown])  # of each group's packets; nothing of the other groups is needed
        needed = places[(places <= last[group]) & (shown | (self.kind != DISPOSABLE))]
        begin, end = int(self.offset[needed[0]]), int(self.offset[needed[-1]] + self.size[needed[-1]])
        data = memoryview(self.shard.read(begin, end))
        decoder = _decoder(self.setup)
        decoder.flush_buffers()  # of what a broken stream may have left
        pictures = _Pictures(rows, arena)
        with blaming(self.path, "does not decode"):
            for place in needed:
                at = int(self.offset[place]) - begin
                packet = av.Packet(data[at : at + int(self.size[place])])
                packet.pts = int(self.number[place])
                pictures.take(decoder.decode(packet))
            pictures.take(decoder.decode(None))
        if pictures.missing:
            raise MediaError(self.path, f"frame {min(pictures.missing)} of {len(self.number)} does not decode")
        return pictures.out

    def damaged(self) -> list[str]:
        """Which of ``"video"`` and ``"sound"`` are not the bytes that were stored."""
        digests = {"video": self.row.get("video_sha256"), "sound": self.row.get("sound_sha256")}
        begun, sizes = self.members[::2], self.members[1::2]
        return [
            name for (name, digest), start, size in zip(digests.items(), begun, sizes, strict=True)
            if digest and hashlib.sha256(self.shard.read(start, start + size)).hexdigest() != digest
        ]  # fmt: skip

    def sound(self, start: float, end: float) -> np.ndarray:
        """(samples,) float32 in -1..1, 16 kHz, between two times of the clip; shorter where the sound ends before.

        Raises:
            MediaError: there is no sound, or none of it lies there.
        """
        if not self.samples:
            raise MediaError(self.path, "has no audio track")
        low, high = (min(max(0, round(t * SAMPLE_RATE)), self.samples) for t in (start, end))
        if high <= low:
            raise MediaError(self.path, f"has no sound between {start:.2f} and {end:.2f} s")
        pcm = np.frombuffer(self.shard.read(self.sound_at + 2 * low, self.sound_at + 2 * high), "<i2")
        return pcm.astype(np.float32) / 32768


class _Pictures:
    """Collects the wanted frames as RGB, straight into the array that is given on.

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


@dataclass
class Sample:
    """A clip as it is stored.

    Attributes:
        row: of the manifest, with its ``key``. video: an mp4 file. sound: a wav file, or None.
    """

    row: dict
    video: bytes
    sound: bytes | None


def encode_video(frames: Iterable[np.ndarray], times: np.ndarray, size: tuple[int, int], quality: int = 21) -> bytes:
    """The stored stream of (H, W, 3) uint8 frames of ``size`` at ``times`` (seconds, from 0): an mp4 file, the same bytes every
    time.

    Args:
        quality: x264's constant rate factor; lower is better and larger.
    """
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        rate = Fraction((len(times) - 1) / (times[-1] - times[0])).limit_denominator(1001) if len(times) > 1 else Fraction(25)
        stream = container.add_stream("libx264", rate=rate)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.thread_count = 1
        stream.codec_context.time_base = Fraction(1, TICKS)
        structure = (
            f"keyint={KEY_INTERVAL}:min-keyint={KEY_INTERVAL}:scenecut=0:open-gop=0:bframes={STRIDE - 1}:b-adapt=0:b-pyramid=none"
        )
        # Without cpu-independent, x264's AVX-512 code gives other bytes from run to run.
        stream.options = {
            "preset": "slow",
            "tune": "fastdecode",
            "crf": str(quality),
            "x264-params": f"{structure}:cpu-independent=1",
        }
        for frame, time in zip(frames, times, strict=True):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts, picture.time_base = round(time * TICKS), Fraction(1, TICKS)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return file.getvalue()


def encode_sound(waveform: np.ndarray) -> bytes:
    """A wav file of 16 bits from (samples,) float in -1..1 at 16 kHz."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
        out.writeframes((waveform * 32768).round().clip(-32768, 32767).astype("<i2").tobytes())
    return file.getvalue()


def write_shard(path: Path, samples: Sequence[Sample]) -> None:
    """Writes the tar file and then its index, each in one step; the index's being there says that both are whole."""
    path, starts = Path(path), []
    with atomic_write(path) as temporary, tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            row = json.dumps(sample.row, ensure_ascii=False, indent=1).encode()
            members = {"json": row, "mp4": sample.video} | ({} if sample.sound is None else {"wav": sample.sound})
            starts.append({})
            for suffix, data in members.items():
                member = tarfile.TarInfo(f"{sample.row['key']}.{suffix}")
                member.size, member.mode = len(data), 0o644
                starts[-1][suffix] = tar.offset + tarfile.BLOCKSIZE
                tar.addfile(member, io.BytesIO(data))
    with atomic_write(path.with_suffix(".index")) as temporary:
        temporary.write_bytes(_index(samples, starts))


def _index(samples: Sequence[Sample], starts: Sequence[dict[str, int]]) -> bytes:
    """The index of a shard whose members begin at ``starts``; see docs/data.md for its arrays."""
    packets, columns, members, setup, setups = [0], [], [], [], {}
    for sample, start in zip(samples, starts, strict=True):
        with av.open(io.BytesIO(sample.video)) as container:
            stream = container.streams.video[0]
            found = [p for p in container.demux(stream) if p.size]
            stamps = np.array([p.pts for p in found])
            kinds = [KEY if p.is_keyframe else DISPOSABLE if is_disposable(p) else REFERENCE for p in found]
            number = np.empty(len(found), np.int32)
            number[np.argsort(stamps)] = np.arange(len(found))
            seconds = np.sort(stamps) * float(stream.time_base)
            places = np.array([p.pos for p in found]) + start["mp4"]
            columns.append((places, [p.size for p in found], number, kinds, seconds - seconds[0]))
            extradata = bytes(stream.codec_context.extradata)
        packets.append(packets[-1] + len(found))
        end = len(b"".join(setups))
        begin = setups.setdefault(extradata, end)
        setup.append((begin, begin + len(extradata)))
        members.append((start["mp4"], len(sample.video), start.get("wav", 0), len(sample.sound or b"")))
    types = {"offset": np.int64, "size": np.int32, "number": np.int32, "kind": np.uint8, "time": np.float64}
    arrays = {
        name: np.concatenate([np.asarray(c[k], dtype) for c in columns]) if columns else np.zeros(0, dtype)
        for k, (name, dtype) in enumerate(types.items())
    }
    arrays |= {"packets": np.array(packets, np.int64), "members": np.array(members, np.int64).reshape(-1, 4)}
    arrays |= {"setup": np.array(setup, np.int64).reshape(-1, 2), "setups": np.frombuffer(b"".join(setups), np.uint8).copy()}
    return save(arrays, {"clips": json.dumps([s.row for s in samples], ensure_ascii=False)})


WAV_HEADER = len(encode_sound(np.zeros(0, np.float32)))
