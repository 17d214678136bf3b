"""``avfmae bench kernels``: every op at the shapes of Base pre-training, every implementation that runs here."""

from collections.abc import Callable, Iterator

import torch
from rich.table import Table

import avfmae_kernels as K
from avfmae.console import console
from avfmae_benchmarks import order, results
from avfmae_benchmarks.measure import bandwidth, free, interleave, machine, matrix_rate, replayed, show, wait
from avfmae_benchmarks.ops import CASES
from avfmae_benchmarks.options import KernelsConfig
from avfmae_benchmarks.step import pick_device
from avfmae_kernels.chip import compute_capability
from avfmae_kernels.dispatch import IMPLEMENTATIONS, why_not


def kernels(run: KernelsConfig, where: dict[str, str] | None = None) -> list[dict]:
    """Runs the comparison and prints its table. Returns the rows.

    Args:
        where: what rows say of the machine and the time. What ``run.out`` has rows of the same time of is not measured again.
    """
    device = pick_device(run.device)
    batch = run.batch or (256 if device.type == "cuda" else 8)
    cases = {name: case for name, case in CASES.items() if case[0] and (not run.only or name.startswith(tuple(run.only)))}
    if not cases:
        raise ValueError(f"only: no op begins with {' or '.join(run.only)}; there are {', '.join(CASES)}")
    rows = results.of_run("kernels", run.out, where)
    measured = {(row["case"], row["precision"]) for row in rows}
    where, fastest, sound = where or machine(device), bandwidth(device), True
    products = {p: matrix_rate(device, getattr(torch, p), run.rounds) for p in run.precisions}
    for name, (op, make) in cases.items():
        for precision in run.precisions:
            if (name, precision) in measured:
                continue
            found = []
            for row in timed(name, op, make, precision, batch, run.rounds, device):
                roofs = {"copy_gb_per_s": fastest / 1e9, "matrix_gflops": products[precision] / 1e9}
                share = {} if "note" in row else {"bandwidth_share": row["gb_per_s"] * 1e9 / fastest}
                chip = {"capability": compute_capability(device.index)} if device.type == "cuda" else {}
                found.append(
                    where | {"case": name, "op": op, "precision": precision, "batch": batch} | chip | row | share | roofs
                )
            rows += found
            sound &= not any("note" in row for row in found)
            if run.save and (right := [row for row in found if row.get("note") != WRONG]):
                results.append("kernels", right, run.out)
            free(device)
    table = Table(title=f"ops at Base's shapes, batch {batch}, {where['device']}; a copy moves {fastest / 1e9:.0f} GB/s")
    for column in ("op", "dtype", "direction", "implementation", "µs (p20 to p80)", "GB/s", "of a copy", "× reference"):
        table.add_column(column, justify="left" if column in ("op", "dtype", "direction", "implementation") else "right")
    for row in rows:
        cells = [row["case"], row["precision"], row["direction"], row["implementation"]]
        if row.get("note"):
            table.add_row(*cells, "", "", "", row["note"])
            continue
        us, low, high, rate, share = (float(row[k]) for k in ("us", "us_p20", "us_p80", "gb_per_s", "bandwidth_share"))
        plain = [
            r
            for r in rows
            if r["implementation"] == "reference" and all(r[k] == row[k] for k in ("case", "precision", "direction"))
        ]
        against = f"{float(plain[0]['us']) / us:.2f}" if plain and plain[0].get("us") else ""
        table.add_row(*cells, f"{us:.0f} ({low:.0f} to {high:.0f})", f"{rate:.1f}", f"{share:.0%}", against)
    show(table)
    if run.save and rows:
        console.print(f"added to {run.out / 'kernels.csv'}", highlight=False)
        if device.type == "cuda" and run.out == results.FOLDER and results.CHECKOUT:
            console.print(f"the order of kernels: {order.write()}", highlight=False)
    if not sound:
        console.print(
            "An implementation does not run, or its answer is not the reference's: that one's time is not saved.", style="red"
        )
        raise SystemExit(1)
    return rows


WRONG = "wrong"
REPEATS = 20  # calls of an op in a CUDA graph, which is timed as a whole


def timed(name: str, op: str, make: Callable, precision: str, batch: int, rounds: int, device: torch.device) -> Iterator[dict]:
    """Rows of one case, both directions; with a note in place of numbers for an implementation that fails or is wrong."""
    calls, floors, failed = prepared(op, make, batch, getattr(torch, precision), device)
    for implementation, reason in failed.items():
        yield {"direction": "", "implementation": implementation, "note": reason}
    for direction in ("forward", "backward"):
        here, called = {i: c[direction] for i, c in calls.items() if direction in c}, {}
        for implementation in list(here):
            try:
                with order.arguments_of() as seen:
                    here[implementation]()
                called[implementation] = order.described(seen, op)
                wait(device)
            except RuntimeError as error:  # of memory, of a compiler, of a launch
                del here[implementation]
                yield {"direction": direction, "implementation": implementation, "note": first_line(error)}
        if not here:
            continue
        for implementation in disagreeing(here, 1e-4 if precision == "float32" else 2e-2):
            del here[implementation]
            yield {"direction": direction, "implementation": implementation, "note": WRONG}
        graphs = {i: replayed(call, device, REPEATS) for i, call in here.items()}
        timings = interleave({i: run for i, (run, _) in graphs.items()}, device, rounds, 3, 1, f"{name} {precision} {direction}")
        for implementation, t in timings.items():
            floor, repeats = floors[direction], graphs[implementation][1]
            yield {
                "direction": direction,
                "implementation": implementation,
                **called[implementation],
                "us": t.median * 1e6 / repeats,
                "us_p20": t.p20 * 1e6 / repeats,
                "us_p80": t.p80 * 1e6 / repeats,
                "gb_per_s": floor.bytes * repeats / t.median / 1e9,
                "flops_per_byte": floor.flops / floor.bytes,
                "gflops": floor.flops * repeats / t.median / 1e9,
            }


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:160]}"


def prepared(op: str, make, batch: int, dtype: torch.dtype, device: torch.device):
    """By implementation, its calls by direction on the same numbers; by direction a :class:`Run`, for its floors; and by
    implementation why it could not even be set up."""
    calls: dict[str, dict] = {}
    floors: dict = {}
    failed: dict[str, str] = {}
    for implementation in IMPLEMENTATIONS:
        interpreted = (implementation, device.type) == ("triton", "cpu")  # which proves kernels, and is no measure
        if interpreted or why_not(op, implementation, device.type):
            continue
        torch.manual_seed(0)
        try:
            with K.use(implementation):
                runs = make(batch, dtype, device)
        except RuntimeError as error:
            failed[implementation] = first_line(error)
            continue
        calls[implementation] = {d: _under(implementation, r.call) for d, r in runs.items()}
        floors |= runs
    return calls, floors, failed


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
