"""How things are timed: interleaved, after a warm-up, medians with the spread beside them; memory; and the machine's own
limits."""

import datetime
import gc
import platform
import re
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from avfmae.console import console
from avfmae.engines.cuda_graph import NotCaptured, captured
from avfmae_kernels import processor
from avfmae_kernels.matmul import linear


@dataclass(frozen=True)
class Timing:
    """Seconds: the median, the 20th and 80th percentile, and the shortest."""

    median: float
    p20: float
    p80: float
    best: float

    @classmethod
    def of(cls, seconds: list[float]) -> "Timing":
        return cls(*(float(np.percentile(seconds, q)) for q in (50, 20, 80, 0)))

    def milliseconds(self, clips: int = 1) -> dict[str, float]:
        """Median and percentiles in ms, divided by ``clips``, under the names of results' columns."""
        return {"ms": 1e3 * self.median / clips, "ms_p20": 1e3 * self.p20 / clips, "ms_p80": 1e3 * self.p80 / clips}


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def interleave(
    runs: Mapping[str, Callable], device: torch.device, rounds: int, warm_up: int, repeats: int = 1, title: str = "timing"
) -> dict[str, Timing]:
    """Times ``runs`` in turns, so that what slows the machine down slows all of them down.

    Args:
        repeats: calls between two waits for the device, so that one call's launch hides behind another's work.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=(rounds + warm_up) * len(runs))
        for number in range(rounds + warm_up):
            for name, run in runs.items():
                wait(device)
                begun = time.perf_counter()
                for _ in range(repeats):
                    run()
                wait(device)
                if number >= warm_up:
                    seconds[name].append((time.perf_counter() - begun) / repeats)
                progress.update(task, advance=1, description=f"{title}: {name}")
    return {name: Timing.of(s) for name, s in seconds.items()}


def replayed(run: Callable, device: torch.device, repeats: int) -> tuple[Callable, int]:
    """``run`` without what Python takes to launch it: a replay of a CUDA graph, and how often it runs in it.

    What cannot be captured (it waits for the device), and anything on a CPU, is given back as it is, once.
    """
    if device.type != "cuda":
        return run, 1
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        run()
    try:
        graph, _ = captured(lambda: [run() for _ in range(repeats)], stream)
    except NotCaptured:
        return run, 1
    return graph.replay, repeats


def free(device: torch.device) -> None:
    """Gives memory back that nobody holds any more; a step and its graph know each other."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def held(tensors: list[Tensor]) -> int:
    """Bytes of the memory behind tensors, each counted once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def peak_of_cpu(run: Callable) -> int:
    """The most bytes that torch has allocated at once during ``run()``, beyond what it held before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    kept: Any = profile.profiler  # torch's types know nothing of an event's bytes
    events = [e for e in kept.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda e: e.start_ns())
    return int(np.maximum.accumulate(np.cumsum([0, *(e.nbytes() for e in events)]))[-1])


SQUARE = {"cuda": 8192, "cpu": 2048}  # rows of the matrices that matrix_rate multiplies; tests and dry runs take fewer


def matrix_rate(device: torch.device, dtype: torch.dtype, rounds: int = 20) -> float:
    """Operations a second of a large square product: what the best of the libraries at hand reaches on this machine."""
    n = SQUARE[device.type]
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    with torch.no_grad():
        timing = interleave({"product": lambda: linear(a, b, None)}, device, rounds, warm_up=3, title="matrix rate")
    return 2 * n**3 / timing["product"].best


def bandwidth(device: torch.device) -> float:
    """Bytes a second of a copy that no cache holds, reads and writes counted."""
    a = torch.empty(2**30 if device.type == "cuda" else 2**27, dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    timing = interleave({"copy": lambda: b.copy_(a)}, device, rounds=12, warm_up=2, title="bandwidth")
    return 2 * a.numel() / timing["copy"].best


def machine(device: torch.device) -> dict[str, str]:
    """What a row of results says about where it was measured."""
    if device.type == "cuda":
        name, driver = (
            torch.cuda.get_device_name(device),
            _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        )
    else:
        facts = dict(re.findall(r"^([^\t:]+?)\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE))
        model = facts.get("model name", platform.processor())
        if "cpu family" in facts and not re.search(r"\d", model):  # virtual machines hide the number, but not the generation
            model += f" (family {facts['cpu family']}, model {facts['model']})"
        name, driver = f"{model}, {torch.get_num_threads()} cores, {processor.LEVEL or platform.machine()}", ""
    try:
        import triton

        triton_version = triton.__version__
    except ImportError:
        triton_version = ""
    here = Path(__file__).parent
    revision = _output("git", "-C", str(here), "rev-parse", "--short", "HEAD")
    changed = _output("git", "-C", str(here), "status", "--porcelain", "--untracked-files=no", "--", "..", ":!results")
    return {
        "date": datetime.datetime.now().isoformat(timespec="seconds"), "revision": revision + ("+" if changed else ""),
        "device": name, "driver": driver.splitlines()[0] if driver else "", "torch": torch.__version__, "triton": triton_version,
    }  # fmt: skip


def show(table: Table) -> None:
    """Prints a table whole, also where nobody looks and the terminal counts as narrow."""
    Console(file=console.file, width=max(console.width, 160)).print(table)


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
