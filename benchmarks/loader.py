"""``avfmae bench loader``: how many clips a second arrive from files, and what each takes."""

import shutil
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from rich.table import Table

from avfmae.config import ModelConfig
from avfmae.data.dataset import ClipDataset, DataConfig, Plan, PretrainDataset, loader, sample_window
from avfmae.data.decode import probe, read_frames
from avfmae.data.demo import EMOTIONS, DemoSet, make_demo_set
from avfmae.data.manifest import read_manifest
from avfmae.training.logging import console
from avfmae_benchmarks import results
from avfmae_benchmarks.measure import Timing, machine, show


@dataclass
class LoaderConfig:
    """Clips a second from files to batches, by number of decoding processes; and a clip's time by part.

    Attributes:
        manifest: the clips; none: a drawn set.
        preset: the model whose clips are wanted.
        purpose: pretrain, or train (with RandAugment).
        workers: numbers of decoding processes; 0 decodes in the process itself.
        batch: clips a batch.
        seconds: for each number of workers.
        data: how clips are read.
        save: append rows to the results.
        out: the folder of results.
    """

    manifest: Path | None = None
    preset: str = "base"
    purpose: Literal["pretrain", "train"] = "pretrain"
    workers: tuple[int, ...] = (0, 1, 2)
    batch: int = 8
    seconds: float = 8.0
    data: DataConfig = field(default_factory=DataConfig)
    save: bool = True
    out: Path = results.FOLDER


def bench_loader(run: LoaderConfig) -> list[dict]:
    """Runs and prints the table. Returns the rows."""
    folder = None
    if run.manifest is None:
        folder = Path(tempfile.mkdtemp(prefix="avfmae-clips-"))
        manifest = make_demo_set(folder, DemoSet("faces", first=0, people=4, labels={e: e for e in EMOTIONS}))
    else:
        manifest = run.manifest
    try:
        return _measure(run, read_manifest(manifest))
    finally:
        if folder:
            shutil.rmtree(folder)


def _measure(run: LoaderConfig, clips) -> list[dict]:
    cfg, where = ModelConfig.preset(run.preset), machine(torch.device("cpu"))
    dataset = PretrainDataset(clips, cfg, run.data, "pretrain") if run.purpose == "pretrain" else ClipDataset(clips, cfg, run.data, "train")
    table = Table(title=f"{run.purpose}, {len(clips)} clips, {run.preset}'s size, {where['device']}")
    for column in ("workers", "clips/s", "a worker", "ms between batches (p20 to p80)"):
        table.add_column(column, justify="right")
    rows = []
    plan = Plan.fit(len(clips), run.batch, None)
    for workers in run.workers:
        batches = iter(loader(dataset, plan.micro_batches(0, 10**9), workers))
        next(batches)  # workers have started
        gaps, begun = [], time.perf_counter()
        while time.perf_counter() - begun < run.seconds:
            asked = time.perf_counter()
            next(batches)
            gaps.append(time.perf_counter() - asked)
        rate, t = len(gaps) * run.batch / (time.perf_counter() - begun), Timing.of(gaps)
        del batches
        rows.append(where | {
            "purpose": run.purpose, "preset": run.preset, "clips": len(clips), "workers": workers, "batch": run.batch,
            "clips_per_s": rate, "ms": t.median * 1e3, "ms_p20": t.p20 * 1e3, "ms_p80": t.p80 * 1e3,
        })  # fmt: skip
        table.add_row(str(workers), f"{rate:.1f}", f"{rate / max(1, workers):.1f}", f"{t.median * 1e3:.0f} ({t.p20 * 1e3:.0f} to {t.p80 * 1e3:.0f})")
    show(table)
    parts = by_part(dataset, clips[:32])
    console.print("a clip, ms: " + ", ".join(f"{name} {seconds * 1e3:.1f}" for name, seconds in parts.items()), highlight=False)
    if run.save:
        console.print(f"added to {results.append('loader', rows, run.out)}", highlight=False)
    return rows


def by_part(dataset: ClipDataset, clips) -> dict[str, float]:
    """Median seconds a clip takes in each part of reading it."""
    parts: dict[str, list[float]] = {"probe": [], "decode frames": [], "crop and augment": [], "decode sound, spectrogram": []}
    spread = dataset.purpose != "pretrain"
    for clip in clips:
        rng, marks = np.random.default_rng(clip.id), [time.perf_counter()]
        info = probe(clip.path, True)
        marks.append(time.perf_counter())
        window = sample_window(info, clip, rng.random(), dataset.cfg.video.size[0], dataset.data, spread)
        frames = read_frames(clip.path, window.frames)
        marks.append(time.perf_counter())
        dataset.cut(frames, clip, 0, rng)
        marks.append(time.perf_counter())
        dataset.hear(clip, info, window, rng)
        marks.append(time.perf_counter())
        for name, begun, ended in zip(parts, marks, marks[1:], strict=False):
            parts[name].append(ended - begun)
    return {name: Timing.of(seconds).median for name, seconds in parts.items()}
