"""Where a step's time goes: a trace for the eye, and a table by kind of work, so that the next bottleneck has a name."""

import re
import time
from collections import defaultdict
from pathlib import Path

import torch
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from avfmae.console import console
from avfmae_benchmarks.measure import show, wait
from avfmae_benchmarks.sides import Side

# The first that is found in an op's name on a CPU, or in a kernel's on a GPU.
KINDS = [
    (re.compile(r"matmul_adamw"), "weight gradients, which AdamW takes"),
    (
        re.compile(r"adam|gradient_norm|_foreach|multi_tensor|linalg_vector_norm|lerp_|addcdiv|addcmul|^aten::sqrt", re.I),
        "optimizer and norm",
    ),
    (
        re.compile(
            r"region_attention|cross_attention|few_keys|add_layer_norm|gated_sum|gelu_backward|assemble_tokens|gather_patches|"
            r"masked_patch_loss",
            re.I,
        ),
        None,
    ),  # each of ours under its own name
    (re.compile(r"flash|scaled_dot|fmha|bmm|baddbmm", re.I), "attention products of torch"),
    (
        re.compile(r"mm\b|addmm|matmul_bf16|linear|gemm|cutlass|nvjet|xmma|cublas|splitk|convolution|conv", re.I),
        "matrix products of linear layers",
    ),
    (re.compile(r"softmax", re.I), "softmax"),
    (re.compile(r"layer_norm", re.I), "layer norm of torch"),
    (re.compile(r"gelu", re.I), "GELU of torch"),
    (re.compile(r"copy|memcpy|memset|cat|to_copy|clone|fill|contiguous", re.I), "copies"),
]


def kind(name: str) -> str:
    for pattern, label in KINDS:
        if found := pattern.search(name):
            return label or found.group().lower()
    return "other" if name.startswith("aten::") or "kernel" in name.lower() else "Python and bookkeeping"


def by_name(run, device: torch.device, steps: int, trace: Path | None = None) -> tuple[dict[str, tuple[int, float]], float]:
    """Of some steps, calls and seconds of each kernel on a GPU, of each op itself on a CPU; and seconds of wall time, without the
    profiler."""
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    wait(device)
    begun = time.perf_counter()
    for _ in range(steps):
        run()
    wait(device)
    wall = time.perf_counter() - begun
    with profile(activities=activities) as profiler:
        for _ in range(steps):
            run()
        wait(device)
    if on_gpu:
        kernels = [
            e
            for e in profiler.events() or ()
            if e.device_type == torch.autograd.DeviceType.CUDA and not e.name.startswith(("ProfilerStep", "## "))
        ]
        times = [(e.name, 1, e.time_range.elapsed_us()) for e in kernels]
    else:
        times = [(e.key, e.count, e.self_cpu_time_total) for e in profiler.key_averages()]
    if trace is not None:
        trace.parent.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(trace))
    found: dict[str, tuple[int, float]] = {}
    for name, calls, microseconds in times:
        before = found.get(name, (0, 0.0))
        found[name] = before[0] + calls, before[1] + microseconds / 1e6
    return found, wall


def breakdown(run, device: torch.device, steps: int, trace: Path | None = None) -> tuple[dict[str, float], float]:
    """Seconds a step by kind of work, and of wall time; on a GPU what is missing from the wall time is idle."""
    found, wall = by_name(run, device, steps, trace)
    seconds: defaultdict[str, float] = defaultdict(float)
    for name, (_, spent) in found.items():
        seconds[kind(name)] += spent / steps
    wall /= steps
    busy = sum(seconds.values())
    if wall > busy:
        seconds["idle"] = wall - busy
    return dict(sorted(seconds.items(), key=lambda item: -item[1])), wall


def profile_sides(built: dict[str, Side], device: torch.device, folder: Path) -> None:
    """Prints the table, and writes ``folder/<side>.json`` for chrome://tracing or Perfetto."""
    tables = {}
    for label, side in built.items():
        trace = folder / f"{label.replace(' ', '-')}.json"
        tables[label], _ = breakdown(side.run, device, 3, trace)
        console.print(f"trace: {trace}", highlight=False)
    kinds = sorted({k for t in tables.values() for k in t}, key=lambda k: -max(t.get(k, 0) for t in tables.values()))
    table = Table(title="where a step's time goes, ms (under the profiler, which slows small ops down)")
    table.add_column("")
    for label in tables:
        table.add_column(label, justify="right")
    for k in kinds:
        table.add_row(k, *(f"{1e3 * t[k]:.1f} ({t[k] / sum(t.values()):.0%})" if k in t else "" for t in tables.values()))
    show(table)
