"""``avfmae bench loader``: how many clips a second arrive from a prepared set and from raw videos, against the published
loader."""

import gc
import io
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import psutil
import torch
from rich.table import Table

from avfmae.config import ModelConfig
from avfmae.console import console
from avfmae.data import augment
from avfmae.data.clip import Clip
from avfmae.data.dataset import PretrainDataset
from avfmae.data.loader import loader
from avfmae.data.manifest import read_manifest
from avfmae.data.prepare import PrepareConfig, find_clips, prepare
from avfmae.data.preprocess import preprocess
from avfmae.data.sampler import BatchSampler
from avfmae.data.shards import encode_sound
from avfmae.data.sources import MediaError, open_clip
from avfmae.data.sources.prepared import OPENED, PreparedClip
from avfmae.data.sources.probing import forget
from avfmae.datasets.drawn import EMOTIONS, DemoSet, make_demo_set
from avfmae_benchmarks import results
from avfmae_benchmarks.measure import Timing, interleave, machine, show
from avfmae_benchmarks.options import LoaderConfig
from avfmae_benchmarks.peers.loader import PublishedLoader

SIZE, FPS, SECONDS = 224, 25, 8  # of the clips, as VoxCeleb2's are
SETTLED = 500  # opens after which memory is expected to stay


def bench_loader(run: LoaderConfig) -> list[dict]:
    """Runs and prints the tables. Returns the rows."""
    folder = Path(tempfile.mkdtemp(prefix="avfmae-clips-"))
    threads = torch.get_num_threads()
    try:
        clips = make_clips(run, folder)
        prepared = read_manifest(prepare(PrepareConfig(folder / "clips", folder / "set", detector="precropped")))
        torch.set_num_threads(1)
        rows = one_core(run, clips, prepared)
        torch.set_num_threads(threads)
        storage(clips, prepared)
        rows += whole_loader(run, prepared)
        if run.opens:
            soak(run, clips, folder)
    finally:
        torch.set_num_threads(threads)
        shutil.rmtree(folder)
    if run.save:
        console.print(f"added to {results.append('loader', rows, run.out)}", highlight=False)
    return rows


def make_clips(run: LoaderConfig, folder: Path) -> Sequence[Clip]:
    """Clips of one kind, each an mp4 with its wav file beside it, which the published loader reads."""
    if run.source is None:
        people = -(-run.clips // len(EMOTIONS))
        source = make_demo_set(folder, DemoSet("faces", first=0, people=people, labels={e: e for e in EMOTIONS}))
    else:
        source = run.source
    (folder / "clips").mkdir()
    for number, clip in enumerate(find_clips(source)[: run.clips]):
        opened = open_clip(clip)
        info = opened.info
        times = np.arange(FPS * SECONDS) / FPS
        span = info.times[-1] - info.times[0] + 1 / info.fps
        at = np.searchsorted(info.times - info.times[0], times % span + 1e-6, "right") - 1
        frames = opened.frames(range(len(info.times)))
        box = augment.view_box(augment.face_box(clip.face, frames.shape[1:3]), 0, 1)
        frames = augment.crop(frames, box, (SIZE, SIZE), "bicubic")[at]
        sound = opened.sound(info.times[0], info.times[0] + span) if info.has_audio else np.zeros(16_000, np.float32)
        sound = np.resize(sound, 16_000 * SECONDS)
        path = folder / "clips" / f"{number:02d}.mp4"
        path.write_bytes(ordinary(frames, 23, sound))
        path.with_suffix(".wav").write_bytes(encode_sound(sound))
    return find_clips(folder / "clips")


def ordinary(frames: np.ndarray, quality: int, sound: np.ndarray | None = None) -> bytes:
    """An mp4 file as everybody makes it: libx264 with nothing but a rate factor."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        video = container.add_stream("libx264", rate=FPS)
        video.height, video.width = frames.shape[1:3]
        video.pix_fmt, video.options = "yuv420p", {"crf": str(quality)}
        audio = None if sound is None else container.add_stream("aac", rate=16_000, layout="mono")
        for frame in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(video.encode())
        if audio is not None and sound is not None:
            for first in range(0, len(sound), 1024):
                piece = av.AudioFrame.from_ndarray((sound[None, first : first + 1024] * 32767).astype(np.int16), "s16", "mono")
                piece.sample_rate, piece.pts = 16_000, first
                container.mux(audio.encode(piece))
            container.mux(audio.encode())
    return file.getvalue()


def one_core(run: LoaderConfig, clips: Sequence[Clip], prepared: Sequence[Clip]) -> list[dict]:
    """All sides on one core in turns, and where each spends its time."""
    cfg = ModelConfig.preset("base")
    published = PublishedLoader()
    sets = {name: PretrainDataset(c, cfg, run.data, "pretrain") for name, c in (("mp4", clips), ("prepared", prepared))}
    epoch = iter(range(10**9))

    def read(name: str):
        return sets[name].batch([(next(epoch), i) for i in range(len(clips))])

    sides = {
        "published": lambda: [published(Path(c.path)) for c in clips],
        "ours, mp4": lambda: read("mp4"),
        "ours, mp4, with what a GPU does": lambda: preprocess(read("mp4"), cfg, fused=True),
        "ours, prepared": lambda: read("prepared"),
        "ours, prepared, with what a GPU does": lambda: preprocess(read("prepared"), cfg, fused=True),
    }
    timings = interleave(sides, torch.device("cpu"), run.rounds, 1, title="loading")
    where, rows = machine(torch.device("cpu")), []
    table = Table(title=f"{len(clips)} clips of {SIZE} x {SIZE} pixels and {SECONDS} s, one core, {where['device']}")
    for column in ("", "clips/s", "ms a clip (p20 to p80)", "against published"):
        table.add_column(column, justify="left" if not column else "right")
    base = timings["published"].median
    for name, t in timings.items():
        ms = t.milliseconds(len(clips))
        each = f"{ms['ms']:.2f} ({ms['ms_p20']:.2f} to {ms['ms_p80']:.2f})"
        table.add_row(name, f"{1e3 / ms['ms']:.0f}", each, f"{base / t.median:.2f} x")
        rows.append(
            where
            | {
                "purpose": "one core",
                "side": name,
                "preset": "base",
                "clips": len(clips),
                "workers": 0,
                "batch": len(clips),
                "clips_per_s": 1e3 / ms["ms"],
                **ms,
            }
        )
    show(table)
    for name, parts in stages(published, sets, clips, prepared).items():
        console.print(f"{name}, ms a clip: " + ", ".join(f"{part} {ms:.2f}" for part, ms in parts.items()), highlight=False)
    return rows


def stages(
    published: PublishedLoader, sets: dict[str, PretrainDataset], clips: Sequence[Clip], prepared: Sequence[Clip]
) -> dict[str, dict[str, float]]:
    """Median milliseconds of each part, by side."""
    spent: dict[str, dict[str, list[float]]] = {}

    def timed(side: str, part: str, work, *given):
        begun = time.perf_counter()
        result = work(*given)
        spent.setdefault(side, {}).setdefault(part, []).append(time.perf_counter() - begun)
        return result

    def opened(clip: Clip):
        return (source := open_clip(clip)), source.info

    for clip in clips:
        given = Path(clip.path)
        for part, work in published.parts.items():
            given = timed("published", part, work, given)
    for name, listed in (("mp4", clips), ("prepared", prepared)):
        dataset = sets[name]
        for number, clip in enumerate(listed):
            first = 4 * np.arange(16) + 11 * number
            forget()
            OPENED.clear()
            side = f"ours, {name}"
            source, info = timed(side, "open", opened, clip)
            timed(side, "decode", source.frames, first)
            timed(side, "sound", source.sound, info.times[first[0]], info.times[first[0]] + 2.56)
            sample = dataset[(0, number)]
            batch = timed(side, "copy", dataset.collate, [sample])
            timed(side, "(device's part: filterbank)", preprocess, batch, dataset.cfg, True)
    return {side: {part: 1e3 * Timing.of(s).median for part, s in parts.items()} for side, parts in spent.items()}


def storage(clips: Sequence[Clip], prepared: Sequence[Clip]) -> None:
    """Bytes and quality of the stored streams, beside ordinary encodes of the same frames at the same quality."""
    sizes, equal, quality = 0, 0, []
    for clip, stored in zip(clips, prepared, strict=True):
        entry = open_clip(stored.path)
        assert isinstance(entry, PreparedClip)
        count = len(entry.number)  # pyright: ignore[reportAttributeAccessIssue]
        ours = entry.frames(range(count))
        frames = open_clip(clip.path).frames(range(count))
        assert ours is not None
        truth = augment.crop(frames, (0, 0, *frames.shape[2:0:-1]), ours.shape[1:3], "bicubic")
        sizes += int(entry.size.sum())  # pyright: ignore[reportAttributeAccessIssue]
        quality.append(psnr(ours, truth))
        for factor in range(28, 10, -1):  # the smallest ordinary file that is as good
            encoded = ordinary(truth, factor)
            if psnr(decoded(encoded), truth) >= quality[-1]:
                break
        equal += len(encoded)
    console.print(
        f"stored: {sizes / len(clips) / 1e3:.0f} kB a clip at {np.mean(quality):.2f} dB PSNR; an ordinary encode of that quality "
        f"{equal / len(clips) / 1e3:.0f} kB ({sizes / equal:.2f} x)",
        highlight=False,
    )


def decoded(video: bytes) -> np.ndarray:
    import cv2

    with av.open(io.BytesIO(video), "r") as container:
        return np.stack([cv2.cvtColor(f.to_ndarray(), cv2.COLOR_YUV2RGB_I420) for f in container.decode(video=0)])


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB."""
    return float(10 * np.log10(255**2 / np.square(a.astype(np.float32) - b).mean()))


def whole_loader(run: LoaderConfig, prepared: Sequence[Clip]) -> list[dict]:
    """Clips a second of the loader with its processes, copies included."""
    cfg, where, rows = ModelConfig.preset("base"), machine(torch.device("cpu")), []
    sampler = BatchSampler(len(prepared), len(prepared), len(prepared))
    for workers in run.workers:
        batches = loader(PretrainDataset(prepared, cfg, run.data, "pretrain"), sampler.micro_batches(0, 10**9), workers)
        for _ in range(2 * workers):
            next(batches)  # processes have started
        gaps, begun = [], time.perf_counter()
        while time.perf_counter() - begun < run.seconds:
            asked = time.perf_counter()
            next(batches)
            gaps.append(time.perf_counter() - asked)
        rate, t = len(gaps) * len(prepared) / (time.perf_counter() - begun), Timing.of(gaps)
        batches.close()
        rows.append(
            where
            | {
                "purpose": "loader",
                "side": "ours, prepared",
                "preset": "base",
                "clips": len(prepared),
                "workers": workers,
                "batch": len(prepared),
                "clips_per_s": rate,
                **t.milliseconds(),
            }
        )
        console.print(f"loader, {workers} processes: {rate:.0f} clips/s", highlight=False)
    return rows


def soak(run: LoaderConfig, clips: Sequence[Clip], folder: Path) -> dict[str, float]:
    """Opens good and bad files in turns in this process; prints how memory and open files went. Returns megabytes and files."""
    bad = []
    for k, clip in enumerate(clips):
        data = bytearray(Path(clip.path).read_bytes())
        half = len(data) // 2
        damaged = (bytes(data[:half]), bytes(data[:half]) + os.urandom(half), b"", os.urandom(4096))[k % 4]
        bad.append(folder / f"bad-{k:02d}.mp4")
        bad[-1].write_bytes(damaged)
    dataset = PretrainDataset(clips, ModelConfig.preset("base"), run.data, "pretrain")
    process, refused, memory = psutil.Process(), 0, []
    files = process.num_fds()
    for k in range(run.opens):
        clip = Clip(k, str(bad[k // 2 % len(bad)])) if k % 2 else clips[k // 2 % len(clips)]
        forget()
        try:
            dataset.read(clip, k)
        except MediaError:
            refused += 1
        if k + 1 in (min(SETTLED, run.opens), run.opens):
            gc.collect()
            memory.append(process.memory_info().rss / 1e6)
    base, last = memory[0], memory[-1]
    console.print(
        f"{run.opens} opens, {refused} of them refused: {base:.0f} MB after {SETTLED}, {last:.0f} MB at the end "
        f"({100 * (last / base - 1):+.1f} %), "
        f"{process.num_fds() - files} files left open",
        highlight=False,
    )
    return {"megabytes_settled": base, "megabytes": last, "files": process.num_fds() - files}
