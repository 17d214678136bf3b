"""Writes prepared sets: tar shards that WebDataset reads, and beside each an index by which single frames and sounds are found.

A clip of a prepared set has the path ``FOLDER/000003.tar/KEY``. ``FOLDER`` may be any URL that fsspec opens. The tar holds, for
each clip, ``KEY.mp4`` (H.264, faces cropped, one size for all), ``KEY.wav`` (16 kHz mono, 16 bits, its first sample at the first
frame) and ``KEY.json`` (the manifest's row). docs/data.md tells the format.

*Why this format.* Training takes every fourth frame. In the stored stream every fourth frame is predicted from the fourth before,
and the three between them from these two neighbours and from nothing else: they are *disposable*. So a window of 16 frames at
stride 4 decodes the chain of fourth frames, and of the others only those that it shows: about 32 frames in place of 61 and what
precedes them. The stream is an ordinary one, which any player plays; other strides and counts only decode more of it.
"""

import io
import json
import tarfile
import wave
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from zlib import crc32

import av
import numpy as np
from safetensors.numpy import save

from avfmae.data.config import SAMPLE_RATE, Preparation
from avfmae.data.sources.bitstream import is_disposable
from avfmae.data.sources.prepared import DISPOSABLE, KEY, REFERENCE, WAV_HEADER, crcs, index_crc
from avfmae.files import atomic_write, digest

STRIDE = 4  # frames from one that others depend on to the next
KEY_INTERVAL = 32  # frames from one at which decoding can begin to the next
TICKS = 90_000  # of a frame's time stamp, a second


@dataclass
class Sample:
    """A clip as it is stored: its row of the manifest with its ``key``, an mp4 file, and a wav file or None."""

    row: dict
    video: bytes
    sound: bytes | None


def encode_video(frames: Iterable[np.ndarray], times: np.ndarray, size: tuple[int, int], quality: int = 21) -> bytes:
    """An mp4 file of (H, W, 3) uint8 frames at ``times`` (seconds, from 0), the same bytes every time. ``quality``: of x264."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        rate = Fraction((len(times) - 1) / (times[-1] - times[0])).limit_denominator(1001) if len(times) > 1 else Fraction(25)
        stream = container.add_stream("libx264", rate=rate)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.thread_count = 1
        stream.codec_context.time_base = Fraction(1, TICKS)
        gop = f"keyint={KEY_INTERVAL}:min-keyint={KEY_INTERVAL}:scenecut=0:open-gop=0"
        structure = f"{gop}:bframes={STRIDE - 1}:b-adapt=0:b-pyramid=none"
        # Without cpu-independent, x264's AVX-512 code gives other bytes from run to run.
        stream.options = {"preset": "slow", "tune": "fastdecode", "crf": str(quality),
                          "x264-params": f"{structure}:cpu-independent=1"}  # fmt: skip
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


def write_shard(path: Path, samples: Sequence[Sample], preparation: Preparation | None = None) -> None:
    """Writes the tar file and then its index, each in one step; the index's being there says that both are whole.

    ``preparation``: how the faces were cut out; None: not known.
    """
    path, starts = Path(path), []
    with atomic_write(path) as temporary, tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            row = json.dumps(sample.row, indent=1).encode()
            members = {"json": row, "mp4": sample.video} | ({} if sample.sound is None else {"wav": sample.sound})
            starts.append({})
            for suffix, data in members.items():
                member = tarfile.TarInfo(f"{sample.row['key']}.{suffix}")
                member.size, member.mode = len(data), 0o644
                starts[-1][suffix] = tar.offset + tarfile.BLOCKSIZE
                tar.addfile(member, io.BytesIO(data))
    with atomic_write(path.with_suffix(".index")) as temporary:
        temporary.write_bytes(_index(samples, starts, preparation, digest([path])))


def _index(samples: Sequence[Sample], starts: Sequence[dict[str, int]], preparation: Preparation | None, whole: str) -> bytes:
    """The index of a shard whose members begin at ``starts``; see docs/data.md for its arrays. ``whole``: SHA-256 of the tar."""
    packets, columns, members, setup, setups, sound = [0], [], [], [], {}, [[]]
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
            columns.append((places, [p.size for p in found], number, kinds, seconds - seconds[0], [crc32(p) for p in found]))
            extradata = bytes(stream.codec_context.extradata)
        packets.append(packets[-1] + len(found))
        begin = setups.setdefault(extradata, len(b"".join(setups)))
        setup.append((begin, begin + len(extradata)))
        members.append((start["mp4"], len(sample.video), start.get("wav", 0), len(sample.sound or b"")))
        sound.append(crcs((sample.sound or b"")[WAV_HEADER:]))
    types = {"offset": np.int64, "size": np.int32, "number": np.int32, "kind": np.uint8, "time": np.float64, "crc": np.uint32}
    arrays = {
        name: np.concatenate([np.asarray(c[k], dtype) for c in columns]) if columns else np.zeros(0, dtype)
        for k, (name, dtype) in enumerate(types.items())
    }
    arrays |= {"packets": np.array(packets, np.int64), "members": np.array(members, np.int64).reshape(-1, 4)}
    arrays |= {"setup": np.array(setup, np.int64).reshape(-1, 2), "setups": np.frombuffer(b"".join(setups), np.uint8).copy()}
    if preparation is not None:  # as an array, since the order of metadata's keys differs from run to run
        arrays["preparation"] = np.frombuffer(json.dumps(asdict(preparation)).encode(), np.uint8)
    arrays |= {"sound_crc": np.concatenate(sound).astype(np.uint32), "sound_blocks": np.cumsum([len(s) for s in sound])}
    arrays["tar_sha256"] = np.frombuffer(bytes.fromhex(whole), np.uint8)
    clips = json.dumps([s.row for s in samples])
    return save(arrays | {"index_crc": np.array([index_crc(arrays, clips)], np.uint32)}, {"clips": clips})
