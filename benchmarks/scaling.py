"""``avfmae bench scaling``: our step over model sizes and batch sizes, up to what the device holds."""

from functools import partial

import torch
from rich.table import Table

from avfmae.console import console
from avfmae_benchmarks import results, sides
from avfmae_benchmarks.measure import free, interleave, machine, show
from avfmae_benchmarks.options import ScalingConfig
from avfmae_benchmarks.step import measured_alone, pick_device


def scaling(run: ScalingConfig, where: dict[str, str] | None = None) -> list[dict]:
    """Runs and prints the table. Returns the rows.

    Args:
        where: what rows say of the machine and the time. What ``run.out`` has rows of the same time of is not measured again.
    """
    device = pick_device(run.device)
    on_gpu = device.type == "cuda"
    sizes = run.sizes or (("base", "large", "huge") if on_gpu else ("tiny", "base"))
    batches = run.batches or ((32, 64, 128, 256, 512, 1024) if on_gpu else (2, 4, 8))
    rows = results.of_run("scaling", run.out, where, stage=run.stage)
    measured = {(row["size"], int(row["batch"])): row for row in rows}
    where = where or machine(device)
    table = Table(title=f"{run.stage}, {where['device']}")
    for column in ("size", "batch", "ms (p20 to p80)", "clips/s", "useful TFLOP/s", "peak GB"):
        table.add_column(column, justify="right")
    for size in sizes:
        for batch in batches:
            if run.stage == "pretrain" and batch < 2:
                continue  # one clip has no batch statistics
            if (size, batch) in measured:
                if measured[size, batch].get("note"):
                    break
                continue
            row = where | {"stage": run.stage, "size": size, "precision": run.precision, "batch": batch}
            try:
                build = partial(sides.build, "ours", run.stage, size, run.precision, batch, device)
                side, peak = measured_alone(build, device)
                timing = interleave({"ours": side.run}, device, run.rounds, 2, 3 if on_gpu else 1, f"{size}, batch {batch}")[
                    "ours"
                ]
                flops = batch * sides.useful_flops(sides.config("ours", run.stage, size), run.stage)
                row |= {
                    **timing.milliseconds(),
                    "clips_per_s": batch / timing.median,
                    "tflops": flops / timing.median / 1e12,
                    "peak_gb": peak / 1e9,
                }
                table.add_row(
                    size,
                    str(batch),
                    f"{row['ms']:.1f} ({row['ms_p20']:.1f} to {row['ms_p80']:.1f})",
                    f"{row['clips_per_s']:.2f}",
                    f"{row['tflops']:.3f}",
                    f"{row['peak_gb']:.2f}",
                )
            except torch.OutOfMemoryError:
                row["note"] = f"does not fit at batch {batch}"
                console.print(f"{size}: batch {batch} does not fit", style="yellow")
            finally:
                side = None
                free(device)
            rows.append(row)
            if run.save:
                results.append("scaling", [row], run.out)
            if "note" in row:
                break
    show(table)
    if run.save and rows:
        console.print(f"added to {run.out / 'scaling.csv'}", highlight=False)
    return rows
