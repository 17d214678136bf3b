"""``avfmae bench step``: training steps of avfmae and of its peers, side by side in one process."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from rich.table import Table

from avfmae.training.capture import EAGER_STEPS
from avfmae.training.logging import console
from avfmae_benchmarks import measure, results, sides
from avfmae_benchmarks.measure import held, interleave, machine, matrix_rate, peak_of_cpu, wait
from avfmae_benchmarks.profiles import profile_sides
from avfmae_benchmarks.sides import PEERS, Side, SideName, Size, Stage

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class StepConfig:
    """A training step: a batch on the host, forward, backward, clipping, AdamW. All sides in turns, in one process.

    What is timed is checked first: ours against the plain path, each peer against our model of its weights. Where a check fails no
    speed-up is printed, and the command fails.

    Attributes:
        stage: pre-training or fine-tuning.
        size: of avfmae and of AVF-MAE++ as released; HiCMAE has one, base.
        sides: what is compared; speed-ups are given against every peer among them.
        precisions: of every side; empty: bf16 (fp16 as published) on a GPU, float32 and bf16 on a CPU that multiplies bf16.
        batch: clips a step; 0: 256 on a GPU (fine-tuning 32), 4 on a CPU (fine-tuning 2).
        rounds: timed turns. warm_up: turns before them.
        device: auto, cpu or cuda.
        profile: write a trace of every side, and print where a step's time goes.
        save: append rows to the results.
        out: the folder of results.
    """

    stage: Stage = "pretrain"
    size: Size = "base"
    sides: tuple[SideName, ...] = ()
    precisions: tuple[Literal["float32", "bf16", "fp16"], ...] = ()
    batch: int = 0
    rounds: int = 7
    warm_up: int = 2
    device: Literal["auto", "cpu", "cuda"] = "auto"
    profile: bool = False
    save: bool = True
    out: Path = results.FOLDER


def pick_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: cuda was asked for, but torch sees no CUDA device")
    return torch.device(name)


def default_sides(stage: Stage, size: Size, device: torch.device) -> tuple[SideName, ...]:
    """All that exist, but on a CPU without what takes minutes to compile or is not asked for every day."""
    if device.type == "cpu":
        return ("ours", "hicmae") if (stage, size) == ("pretrain", "base") else ("ours", "released")
    peers = ("hicmae", "hicmae-compiled") if (stage, size) == ("pretrain", "base") else ()
    return ("ours", "compiled", "reference", *peers, "released")


def step(run: StepConfig) -> list[dict]:
    """Runs the comparison and prints its table. Returns the rows."""
    device = pick_device(run.device)
    names = tuple(run.sides) or default_sides(run.stage, run.size, device)
    batch = run.batch or {"pretrain": (256, 4), "finetune": (32, 2)}[run.stage][device.type == "cpu"]
    sound = checked(names, run.stage, run.size, device)
    rates = {}
    built: dict[str, Side] = {}
    peaks: dict[str, int] = {}
    for name in names:
        for precision in run.precisions or sides.precisions(name, device):
            label = f"{name} {precision}"
            console.print(f"building {label} …", highlight=False)
            try:
                built[label], peaks[label] = measured_alone(
                    functools.partial(sides.build, name, run.stage, run.size, precision, batch, device), device
                )
            except torch.cuda.OutOfMemoryError:
                console.print(f"{label}: does not fit at batch {batch}", style="yellow")
                torch.cuda.empty_cache()
                continue
            if precision not in rates:
                rates[precision] = matrix_rate(device, DTYPES[precision])
    repeats = 5 if device.type == "cuda" else 1
    timings = interleave({label: s.run for label, s in built.items()}, device, run.rounds, run.warm_up, repeats)
    where = machine(device)
    rows = [
        where
        | {
            "stage": run.stage, "size": "base" if s.name.startswith("hicmae") else run.size, "side": s.name, "precision": s.precision,
            "batch": batch, "ms": t.median * 1e3, "ms_p20": t.p20 * 1e3, "ms_p80": t.p80 * 1e3, "clips_per_s": batch / t.median,
            "peak_gb": peaks[label] / 1e9, "kept_gb": (peaks[label] - held(s.state())) / 1e9,
            "tflops": s.flops / t.median / 1e12, "matrix_share": s.flops / t.median / rates[s.precision],
        }
        for (label, s), t in zip(built.items(), timings.values(), strict=True)
    ]  # fmt: skip
    show(rows, sound, f"{run.stage} {run.size}, batch {batch}, {where['device']}")
    if run.profile:
        profile_sides(built, device, run.out / "traces")
    if run.save and sound:
        console.print(f"added to {results.append('step', rows, run.out)}", highlight=False)
    if not sound:
        raise SystemExit(1)
    return rows


def checked(names: tuple[SideName, ...], stage: Stage, size: Size, device: torch.device) -> bool:
    """Runs the checks of what is to be timed, and says how they went."""
    sound = True
    for what, holds, distance in sides.check(list(names), stage, size, device):
        console.print(f"{'holds' if holds else 'FAILS'}: {what}, {distance}", style=None if holds else "red", highlight=False)
        sound &= holds
    return sound


def measured_alone(build, device: torch.device) -> tuple[Side, int]:
    """Builds a side, and the most memory that a step of it takes: weights, moments, gradients, activations."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        side = build()
        for _ in range(EAGER_STEPS + 2):  # a graph is captured in the last but one
            side.run()
        wait(device)
        return side, torch.cuda.max_memory_allocated(device) - before
    side = build()
    for _ in range(EAGER_STEPS + 1):  # now it has moments, and a tape
        side.run()
    side.model.zero_grad()
    # two steps: gradients of the first may still be there in the forward pass of the second
    return side, held(side.state()) + side.planned() + peak_of_cpu(lambda: (side.run(), side.run()))


def speed_up(rows: list[dict], row: dict) -> dict[str, float]:
    """How many times as fast ``row`` is as the peers of its run: by precision of the peer."""
    return {
        f"{peer['side']} {peer['precision']}": float(row["clips_per_s"]) / float(peer["clips_per_s"])
        for peer in rows
        if peer["side"] in PEERS
    }


def show(rows: list[dict], sound: bool, title: str) -> None:
    table = Table(title=title)
    peers = [f"{r['side']} {r['precision']}" for r in rows if r["side"] in PEERS]
    columns = ["side", "ms (p20 to p80)", "clips/s", "useful TFLOP/s", "of matrix rate", "peak GB", "beyond state"]
    for column in [*columns, *(f"× {p}" for p in peers if sound)]:
        table.add_column(column, justify="left" if column == "side" else "right")
    for row in rows:
        ups = speed_up(rows, row)
        table.add_row(
            f"{row['side']} {row['precision']}", f"{row['ms']:.1f} ({row['ms_p20']:.1f} to {row['ms_p80']:.1f})",
            f"{row['clips_per_s']:.2f}", f"{row['tflops']:.3f}", f"{row['matrix_share']:.0%}", f"{row['peak_gb']:.2f}",
            f"{row['kept_gb']:.2f}", *(f"{ups[p]:.2f}" for p in peers if sound),
        )  # fmt: skip
    measure.show(table)
    if not sound:
        console.print("A check failed: no speed-up is given.", style="red")


