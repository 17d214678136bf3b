"""What a long list of clips costs: a process from nothing to its first batch, the next batches, and its workers.

Processor seconds are counted, so that other work on the machine matters little.
"""

import csv
import hashlib
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Column, Table

from avfmae_benchmarks.options import ManifestConfig

SHARD = 256  # clips
STEPS = 200
GB, MB = 1e9, 1e6


def write_list(path: Path, clips: int) -> None:
    """A manifest as ``avfmae prepare`` writes it, of clips that are not there."""
    from avfmae.data.manifest import COLUMNS
    from avfmae.data.prepare import FACTS

    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, [*COLUMNS, *FACTS], restval="")
        writer.writeheader()
        for i in range(clips):
            total, key = hashlib.sha256(str(i).encode()).hexdigest(), f"{i:08d}-clip"
            facts = {"source": f"/data/{total[:11]}/{i % 100:05d}.mp4", "seconds": 8.1, "fps": 25, "frames": 203}
            sums = dict.fromkeys(("source_sha256", "video_sha256", "sound_sha256"), total)
            writer.writerow(
                {"path": f"{i // SHARD:06d}.tar/{key}", "key": key, "subject": i // 300, "split": "train"} | facts | sums
            )


def first_batch(path: str, batch: int, connection) -> None:
    """In a new process: sends seconds to the first batch's list, bytes at the most, seconds for each further list."""
    from avfmae.data.sampler import BatchSampler

    dataset = open_dataset(path)
    sampler = BatchSampler.fit(len(dataset), batch, None, shards=dataset.shards())
    lists = sampler.micro_batches(0, 1 + STEPS)
    next(lists)
    spent, most = time.process_time(), 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in zip(range(STEPS), lists):  # noqa: B905  (the lists may be fewer)
        pass
    connection.send((spent, most, (time.process_time() - spent) / STEPS))


def rank(path: str | None, batch: int, number: int, ranks: int, connection) -> None:
    """In a new process: one of several that train on a machine; stays as it is at the first batch until it is told to end.

    Args:
        path: None: nothing but torch is imported.
    """
    if path is None:
        import torch  # noqa: F401
    else:
        from avfmae.data.sampler import BatchSampler

        dataset = open_dataset(path)
        shares = {"rank": number, "world": ranks, "shards": dataset.shards()}
        lists = BatchSampler.fit(len(dataset), batch, None, **shares).micro_batches(0, 2)
        next(lists)
    connection.send("ready")
    connection.recv()


def together(path: str | None, batch: int, ranks: int) -> int:
    """Bytes that the ranks of a machine hold at their first batch: each page once, shared or not."""
    context, started = multiprocessing.get_context("spawn"), []
    for number in range(ranks):
        ours, theirs = multiprocessing.Pipe()
        process = context.Process(target=rank, args=(path, batch, number, ranks, theirs))
        process.start()
        theirs.close()
        started.append((process, ours))
    for _, pipe in started:
        pipe.recv()
    held = sum(psutil.Process(process.pid).memory_full_info().pss for process, _ in started)
    for process, pipe in started:
        pipe.send("end")
        process.join()
    return held


def open_dataset(path: str):
    from avfmae.config import ModelConfig
    from avfmae.data.config import DataConfig
    from avfmae.data.dataset import PretrainDataset
    from avfmae.data.manifest import read_manifest

    return PretrainDataset(read_manifest(path), ModelConfig.preset("tiny"), DataConfig(), "pretrain")


@dataclass(frozen=True)
class Looking:
    """What workers are given: looks clips up, and tells the memory that is the process's own."""

    clips: Sequence

    def __call__(self):
        return self.look

    def look(self, places, context) -> int:
        for place in places:
            assert self.clips[place].id == place
        return sum(part.private_dirty for part in psutil.Process().memory_maps())  # pages of the list are every process's


def worker(path: str) -> tuple[float, int]:
    """Seconds for which starting a worker blocks, and the bytes that are the worker's own after a thousand clips."""
    from avfmae.data.workers import Workers

    clips = open_dataset(path).clips
    places = [k * 7919 % len(clips) for k in range(1000)]
    with Workers(Looking(clips), 1, 60.0) as workers:
        next(workers.results([places]))  # starts the server from which others are forked
        workers.processes[0].kill()
        begun = time.perf_counter()
        workers.processes[0].start()
        seconds = time.perf_counter() - begun
        return seconds, next(workers.results([places]))[1]


def manifest(run: ManifestConfig) -> None:
    """Prints the table."""
    table = Table(
        Column("clips", no_wrap=True), "list", "first batch", "memory", "next batch", "worker starts", "its memory",
        f"{run.ranks} ranks", "torch alone",
    )  # fmt: skip
    torch_alone = f"{together(None, run.batch, run.ranks) / GB:.2f} GB"
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        for clips in (1, run.clips):
            path = Path(folder) / f"{clips}.csv"
            write_list(path, clips)
            for kind in ("new", "cached"):
                ours, theirs = multiprocessing.Pipe()
                process = multiprocessing.get_context("spawn").Process(target=first_batch, args=(str(path), run.batch, theirs))
                process.start()
                theirs.close()
                spent, most, following = ours.recv()
                process.join()
                cells = [f"{clips:,}", kind, f"{spent:.1f} s", f"{most / GB:.2f} GB", f"{1e3 * following:.3f} ms"]
                if kind == "cached":
                    seconds, own = worker(str(path))
                    cells += [
                        f"{seconds:.3f} s",
                        f"{own / MB:.0f} MB",
                        f"{together(str(path), run.batch, run.ranks) / GB:.2f} GB",
                        torch_alone,
                    ]
                table.add_row(*cells)
    Console().print(table)
