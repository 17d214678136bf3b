"""``avfmae bench kernels``: every op at the shapes of Base pre-training, every implementation that runs here."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from rich.table import Table

import avfmae_kernels as K
from avfmae.training.logging import console
from avfmae_benchmarks import results
from avfmae_benchmarks.measure import bandwidth, interleave, machine, matrix_rate, show
from avfmae_benchmarks.ops import CASES
from avfmae_benchmarks.step import pick_device
from avfmae_kernels.dispatch import IMPLEMENTATIONS, why_not


@dataclass
class KernelsConfig:
    """Ops, forward and backward; implementations in turns. Each implementation's answer is checked against the reference's first.

    Attributes:
        only: ops to measure, by the beginning of their case's name; empty: all.
        precisions: dtypes.
        batch: clips; 0: 256 on a GPU, 8 on a CPU.
        rounds: timed turns.
        device: auto, cpu or cuda.
        save: append rows to the results.
        out: the folder of results.
    """

    only: tuple[str, ...] = ()
    precisions: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
    batch: int = 0
    rounds: int = 15
    device: Literal["auto", "cpu", "cuda"] = "auto"
    save: bool = True
    out: Path = results.FOLDER


def kernels(run: KernelsConfig) -> list[dict]:
    """Runs the comparison and prints its table. Returns the rows."""
    device = pick_device(run.device)
    batch = run.batch or (256 if device.type == "cuda" else 8)
    cases = {name: case for name, case in CASES.items() if case[0] and (not run.only or name.startswith(tuple(run.only)))}
    if not cases:
        raise ValueError(f"only: no op begins with {' or '.join(run.only)}; there are {', '.join(CASES)}")
    where, fastest, rows, sound = machine(device), bandwidth(device), [], True
    products = {p: matrix_rate(device, getattr(torch, p)) for p in run.precisions}
    table = Table(title=f"ops at Base's shapes, batch {batch}, {where['device']}; a copy moves {fastest / 1e9:.0f} GB/s")
    for column in ("op", "dtype", "direction", "implementation", "µs (p20 to p80)", "GB/s", "of a copy", "× reference"):
        table.add_column(column, justify="left" if column in ("op", "dtype", "direction", "implementation") else "right")
    for name, (op, make) in cases.items():
        for precision in run.precisions:
            calls, floors = prepared(op, make, batch, getattr(torch, precision), device)
            for direction in ("forward", "backward"):
                here = {i: c[direction] for i, c in calls.items() if direction in c}
                if not here:
                    continue
                wrong = disagreeing(here, 1e-4 if precision == "float32" else 2e-2)
                sound &= not wrong
                repeats = 20 if device.type == "cuda" else 1
                timings = interleave(here, device, run.rounds, 3, repeats, f"{name} {precision} {direction}")
                for implementation, t in timings.items():
                    floor = floors[direction]
                    rate = floor.bytes / t.median
                    rows.append(where | {
                        "case": name, "op": op, "precision": precision, "direction": direction, "implementation": implementation,
                        "batch": batch, "us": t.median * 1e6, "us_p20": t.p20 * 1e6, "us_p80": t.p80 * 1e6,
                        "gb_per_s": rate / 1e9, "bandwidth_share": rate / fastest, "flops_per_byte": floor.flops / floor.bytes,
                        "gflops": floor.flops / t.median / 1e9, "copy_gb_per_s": fastest / 1e9, "matrix_gflops": products[precision] / 1e9,
                    })  # fmt: skip
                    against = timings["reference"].median / t.median if "reference" in timings else None
                    table.add_row(
                        name, precision, direction, implementation, f"{t.median * 1e6:.0f} ({t.p20 * 1e6:.0f} to {t.p80 * 1e6:.0f})",
                        f"{rate / 1e9:.1f}", f"{rate / fastest:.0%}",
                        "wrong" if implementation in wrong else f"{against:.2f}" if against else "",
                    )  # fmt: skip
    show(table)
    if not sound:
        console.print("An implementation's answer is not the reference's: nothing is saved.", style="red")
        raise SystemExit(1)
    if run.save:
        console.print(f"added to {results.append('kernels', rows, run.out)}", highlight=False)
    return rows


def prepared(op: str, make, batch: int, dtype: torch.dtype, device: torch.device):
    """By implementation, its calls by direction on the same numbers; and by direction a :class:`Run`, for its floors."""
    calls: dict[str, dict] = {}
    floors: dict = {}
    for implementation in IMPLEMENTATIONS:
        if why_not(op, implementation, device.type):
            continue
        torch.manual_seed(0)
        with K.use(implementation):
            runs = make(batch, dtype, device)
        calls[implementation] = {d: _under(implementation, r.call) for d, r in runs.items()}
        floors |= runs
    return calls, floors


def _under(implementation: str, call):
    @torch.no_grad()
    def run():
        with K.use(implementation):
            return call()

    return run


def disagreeing(calls: dict, tolerance: float) -> list[str]:
    """The implementations whose answer is further than ``tolerance`` (relative L2) from the reference's."""
    if "reference" not in calls:
        return []
    right = _tensors(calls["reference"]())
    wrong = []
    for implementation, call in calls.items():
        for a, b in zip(_tensors(call()), right, strict=False):
            if a.shape == b.shape and not float((a.double() - b.double()).norm()) <= tolerance * float(b.double().norm()):
                wrong.append(implementation)
                break
    return wrong


def _tensors(answer) -> list[torch.Tensor]:
    answer = answer if isinstance(answer, tuple) else (answer,)
    return [t.float() for t in answer if isinstance(t, torch.Tensor) and t.numel()]
