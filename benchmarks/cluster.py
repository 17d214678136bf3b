"""``avfmae bench trace --gpus 8 --nodes 32``: what a traced step becomes on several GPUs. A model, of which nothing was measured.

Each link carries REACHED of its data sheet's rate, and a collective takes at least LATENCY; both are assumptions. What is sent
hides behind work that does not wait for it: gathered weights behind the pass that computes meanwhile, gradients behind the
backward pass.
"""

import json
import math
from dataclasses import dataclass

import torch
from rich.table import Table
from torch import nn

from avfmae.models.attention import DropsBranches
from avfmae_benchmarks import measure, sides, tracing
from avfmae_benchmarks.gpus import CHIPS, Chip, step_seconds
from avfmae_benchmarks.options import TraceConfig
from avfmae_benchmarks.tracing import Trace, traced

REACHED, LATENCY = 0.8, 30e-6
BUCKET = 25 * 2**20  # bytes, DistributedDataParallel's
SMALL = 14  # collectives of a few numbers that a step waits for: of losses, contrast, batch statistics and the norm
CLIPS, EPOCHS = 1_360_531, 100  # the paper's pre-training
PUBLISHED = {"HiCMAE": 115.45, "AVF-MAE++, dual masking and improved LGI-Former": 79.07}  # hours, Table 4


@dataclass(frozen=True)
class Sizes:
    """Numbers of a model's parameters: all, of the largest block, of what is in no block; and how many blocks there are."""

    all: int
    block: int
    rest: int
    blocks: int

    @classmethod
    def of(cls, model: nn.Module) -> "Sizes":
        numbers = [sum(p.numel() for p in m.parameters()) for m in model.modules() if isinstance(m, DropsBranches)]
        everything = sum(p.numel() for p in model.parameters())
        return cls(everything, max(numbers), everything - sum(numbers), len(numbers))


def send_seconds(size: float, gpus: int, nodes: int, chip: Chip) -> float:
    """Of a reduce-scatter or a gather of ``size`` bytes by rings in a node and between nodes, whose chunks travel at once."""
    inside = size * (gpus - 1) / gpus / (chip.nvlink * 1e9 * REACHED)
    between = size / gpus * (nodes - 1) / nodes / (chip.network * 1e9 * REACHED) if nodes > 1 else 0.0
    return max(inside, between)


def shared(t: Trace, sizes: Sizes, strategy: str, gpus: int, nodes: int, chip: Chip) -> dict:
    """Seconds of a step and bytes a GPU, by strategy."""
    world, update = gpus * nodes, [c for c in t.calls if c.group == "norm and update"]
    work = {
        backward: step_seconds([c for c in t.calls if c.backward == backward and c.group != "norm and update"], chip)
        for backward in (False, True)
    }
    if strategy == "ddp":
        sent, last = (2 * send_seconds(size, gpus, nodes, chip) for size in (t.gradients, min(BUCKET, t.gradients)))
        sent += LATENCY * math.ceil(t.gradients / BUCKET)
        exposed = max(last + LATENCY, sent - work[True])  # the last bucket has nothing to hide behind
        optimizer, memory = step_seconds(update, chip), t.state + t.gradients + t.activations
    else:
        gathered = send_seconds(2 * sizes.all, gpus, nodes, chip) + LATENCY * sizes.blocks
        reduced = send_seconds(4 * sizes.all, gpus, nodes, chip) + LATENCY * sizes.blocks
        first, last = (send_seconds(n * sizes.block, gpus, nodes, chip) + LATENCY for n in (2, 4))
        exposed = max(first, gathered - work[False]) + max(last, gathered + reduced - work[True])
        sent = 2 * gathered + reduced
        optimizer = step_seconds(update, chip) / world
        held = (4 + 8 + 4) * sizes.all / world  # float32 weights, moments and gradients
        memory = held + 2 * (sizes.rest + 2 * sizes.block) + 6 * sizes.block + t.activations
    step = max(sum(work.values()) + optimizer + exposed + LATENCY * SMALL, t.upload / (chip.host * 1e9))
    return {
        "strategy": strategy, "gpus": world, "step_ms": round(step * 1e3, 1), "sent_ms": round(sent * 1e3, 1),
        "waited_ms": round((exposed + LATENCY * SMALL) * 1e3, 1), "gb_a_gpu": round(memory / 1e9, 1),
        "fits": memory < 0.92 * chip.memory * 1e9,
    }  # fmt: skip


def trace(run: TraceConfig) -> list[dict]:
    """``avfmae bench trace``: of one GPU, or of several."""
    return cluster(run) if run.gpus * run.nodes > 1 else tracing.trace(run)


def cluster(run: TraceConfig) -> list[dict]:
    """Prints our step on ``gpus`` × ``nodes`` GPUs, by strategy, and the hours of the paper's pre-training. Returns the rows.

    Raises:
        ValueError: the GPU has no link whose rate is known.
    """
    chip = tracing.chip_of(run)
    if not (chip.nvlink and chip.network):
        fit = ", ".join(c.name for c in CHIPS.values() if c.nvlink and c.network)
        raise ValueError(f"gpu: got {run.gpu!r} with {run.gpus} GPUs on {run.nodes} nodes, expected one with NVLink: {fit}")
    cfg, batch = sides.config("ours", run.stage, run.model), run.batch or {"pretrain": 256, "finetune": 32}[run.stage]
    with torch.device("meta"):
        sizes = Sizes.of(sides.our_model(cfg, run.stage))
    t = traced("ours", run.stage, cfg, batch, run.precision, chip.capability)
    total, rows = batch * run.gpus * run.nodes, []
    for strategy in ("ddp", "fsdp"):
        row = shared(t, sizes, strategy, run.gpus, run.nodes, chip)
        hours = CLIPS // total * EPOCHS * row["step_ms"] / 3.6e6
        rows.append(row | {
            "hours": round(hours, 2), "model": run.model, "stage": run.stage, "batch": batch, "total_batch": total,
            "gpu": chip.name, "nodes": run.nodes,
        })  # fmt: skip
    if run.json:
        for row in rows:
            print(json.dumps(row))
        return rows
    shown = Table(
        title=f"{run.stage} {run.model} ({sizes.all / 1e6:.0f} M parameters), {run.nodes} × {run.gpus} {chip.name}, {batch} "
        f"clips each, {total} a step; a model, not measured",
        caption=f"hours of {CLIPS:,} clips and {EPOCHS} epochs; published, on hardware that the paper does not name: "
        + ", ".join(f"{name} {hours} h" for name, hours in PUBLISHED.items()),
    )
    columns = {
        "strategy": "strategy", "ms a step": "step_ms", "ms sent": "sent_ms", "of these waited for": "waited_ms",
        "GB a GPU": "gb_a_gpu", "hours": "hours",
    }  # fmt: skip
    for name in columns:
        shown.add_column(name, justify="left" if name == "strategy" else "right")
    for row in rows:
        shown.add_row(*(str(row[key]) for key in columns.values()), style=None if row["fits"] else "red")
    measure.show(shown)
    return rows
