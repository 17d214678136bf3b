"""``avfmae bench step``: training steps of avfmae and of its peers, two sides at a time, in turns in one process."""

import functools
from collections.abc import Iterator

import torch
from rich.table import Table

from avfmae.console import console
from avfmae.engines.captured import EAGER_STEPS
from avfmae_benchmarks import measure, results, sides
from avfmae_benchmarks.measure import free, held, interleave, machine, matrix_rate, peak_of_cpu, wait
from avfmae_benchmarks.options import Model, SideName, Stage, StepConfig
from avfmae_benchmarks.profiles import profile_sides
from avfmae_benchmarks.sides import PEERS, Side

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Member = tuple[SideName, str]  # of a pair: a side and its precision


def pick_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: cuda was asked for, but torch sees no CUDA device")
    return torch.device(name)


def default_sides(stage: Stage, model: Model, device: torch.device) -> tuple[SideName, ...]:
    """All that exist, but on a CPU without what takes minutes to compile or is not asked for every day."""
    peers = sides.peers(stage, model)
    if device.type == "cpu":
        return ("ours", "ours-fastest", *peers[:1])
    return ("ours", *peers, "ours-eager", "compiled", "reference")


def pairs(names: tuple[SideName, ...], run: StepConfig, device: torch.device) -> Iterator[tuple[Member, ...]]:
    """The first side with each of the others, in each precision; the fastest engine with the first peer where there is one.

    A side that has no other is measured by itself.
    """

    def members(name):
        return [(name, precision) for precision in run.precisions or sides.precisions(name, device)]

    first, *others = names
    peer = next((name for name in others if name in PEERS), None)
    groups = [(other, peer) if other == "ours-fastest" and peer else (first, other) for other in others]
    for group in groups or [(first,)]:
        yield from zip(*map(members, group), strict=True)


def step(run: StepConfig, where: dict[str, str] | None = None) -> list[dict]:
    """Runs the comparison and prints its table. Returns the rows.

    Args:
        where: what rows say of the machine and the time. Pairs of which ``run.out`` has rows of the same time are not measured
            again.
    """
    device = pick_device(run.device)
    names = tuple(run.sides) or default_sides(run.stage, run.model, device)
    batch = run.batch or {"pretrain": (256, 4), "finetune": (32, 2)}[run.stage][device.type == "cpu"]
    wanted = list(pairs(names, run, device))
    before = results.of_run("step", run.out, where, stage=run.stage, size=run.model)
    rows = [row for row in before if row["pair"] in map(title, wanted)]
    missing = [pair for pair in wanted if title(pair) not in {row["pair"] for row in rows}]
    where = where or machine(device)
    sound = checked(tuple(dict.fromkeys(name for pair in missing for name, _ in pair)), run.stage, run.model, device)
    rates = {p: matrix_rate(device, DTYPES[p], 3 * run.rounds) for p in dict.fromkeys(p for pair in missing for _, p in pair)}
    profiled: set[str] = set()
    for pair in missing:
        release(device)  # also what a compiler has learnt of the batch of the check
        found = [where | row for row in take_turns(pair, run, batch, rates, device, profiled)]
        rows += found
        if run.save and sound:
            console.print(f"added to {results.append('step', found, run.out)}", highlight=False)
    release(device)
    show(rows, sound, f"{run.stage} {run.model}, batch {batch}, {where['device']}")
    if not sound:
        raise SystemExit(1)
    return rows


def title(pair: tuple[Member, ...]) -> str:
    return " and ".join(" ".join(member) for member in pair)


def release(device: torch.device) -> None:
    """Gives back what sides that nobody holds any more have left, in memory and in the compiler."""
    torch._dynamo.reset()
    free(device)


def take_turns(
    pair: tuple[Member, ...], run: StepConfig, batch: int, rates: dict[str, float], device: torch.device, profiled: set[str]
) -> list[dict]:
    """Builds the sides of a pair and times them in turns. Gives a row for each, with a note in place of numbers where it does not
    fit."""
    built: dict[str, Side] = {}
    peaks: dict[str, int] = {}
    rows = []
    for name, precision in pair:
        label = f"{name} {precision}"
        console.print(f"building {label} …", highlight=False)
        rows.append(
            {"stage": run.stage, "size": run.model, "side": name, "precision": precision, "batch": batch, "pair": title(pair)}
        )
        try:
            built[label], peaks[label] = measured_alone(
                functools.partial(sides.build, name, run.stage, run.model, precision, batch, device), device
            )
        except torch.OutOfMemoryError:
            beside = f" beside {' and '.join(built)}" if built else ""
            rows[-1]["note"] = f"does not fit at batch {batch}{beside}"
            console.print(f"{label}: {rows[-1]['note']}", style="yellow", highlight=False)
        if label not in built:
            free(device)
    timings = interleave(
        {label: s.run for label, s in built.items()}, device, run.rounds, run.warm_up, 5 if device.type == "cuda" else 1
    )
    for row in rows:
        label = f"{row['side']} {row['precision']}"
        if label in built:
            s, t = built[label], timings[label]
            row |= {
                **t.milliseconds(), "clips_per_s": batch / t.median,
                "peak_gb": peaks[label] / 1e9, "kept_gb": (peaks[label] - held(s.state())) / 1e9,
                "tflops": s.flops / t.median / 1e12, "matrix_share": s.flops / t.median / rates[s.precision],
            }  # fmt: skip
    if run.profile:
        new = {label: s for label, s in built.items() if label not in profiled}
        profile_sides(new, device, run.out / "traces")
        profiled |= set(new)
    return rows


def checked(names: tuple[SideName, ...], stage: Stage, model: Model, device: torch.device) -> bool:
    """Runs the checks of what is to be timed, and says how they went."""
    sound = True
    for what, holds, distance in sides.check(list(names), stage, model, device):
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
    for _ in range(EAGER_STEPS + 3):  # now it has moments, and a tape that is proved
        side.run()
    side.model.zero_grad()
    # two steps: gradients of the first may still be there in the forward pass of the second
    return side, held(side.state()) + side.planned() + peak_of_cpu(lambda: (side.run(), side.run()))


def speed_up(rows: list[dict], row: dict) -> dict[str, float]:
    """How many times as fast ``row`` is as the other side of its pair; in a run of before there were pairs, as each peer."""
    if not row.get("ms"):
        return {}
    pair = row.get("pair")
    others = [r for r in rows if r.get("ms") and (r["pair"] == pair and r["side"] != row["side"] if pair else r["side"] in PEERS)]
    return {f"{r['side']} {r['precision']}": float(row["clips_per_s"]) / float(r["clips_per_s"]) for r in others}


def show(rows: list[dict], sound: bool, title: str) -> None:
    table = Table(title=title)
    for column in [
        "side",
        "ms (p20 to p80)",
        "clips/s",
        "useful TFLOP/s",
        "of matrix rate",
        "peak GB",
        "beyond state",
        *(["speed"] if sound else []),
    ]:
        table.add_column(column, justify="left" if column in ("side", "speed") else "right")
    for row in rows:
        label = f"{row['side']} {row['precision']}"
        if not row.get("ms"):
            table.add_row(label, row["note"])
            continue
        row = row | {name: float(row[name]) for name in NUMBERS}
        ups = [f"{up:.2f} × {other}" for other, up in speed_up(rows, row).items()]
        table.add_row(
            label,
            f"{row['ms']:.1f} ({row['ms_p20']:.1f} to {row['ms_p80']:.1f})",
            f"{row['clips_per_s']:.2f}",
            f"{row['tflops']:.3f}",
            f"{row['matrix_share']:.0%}",
            f"{row['peak_gb']:.2f}",
            f"{row['kept_gb']:.2f}",
            *([", ".join(ups)] if sound else []),
        )
    measure.show(table)
    if not sound:
        console.print("A check failed: no speed-up is given.", style="red")


NUMBERS = ("ms", "ms_p20", "ms_p80", "clips_per_s", "tflops", "matrix_share", "peak_gb", "kept_gb")
