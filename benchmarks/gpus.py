"""How long a GPU would take for launches: a model, not a measurement.

A product takes the longer of its tiles on the chip's processors, wave by wave, and its bytes; everything else its bytes at a
share of the bandwidth that such kernels reach, and no less than a launch. Between two nodes of a captured graph there is a gap.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from avfmae_benchmarks.recorder import Launch


@dataclass(frozen=True)
class Chip:
    """A GPU by its data sheet.

    Attributes:
        tflops: bfloat16 with float32 sums, dense, 1e12/s. bandwidth: of its memory, TB/s. host: from the host's memory, GB/s.
        memory: GB. nvlink: to the other GPUs of a node, one way, GB/s. network: of a GPU's own adapter, one way, GB/s. 0: none.
    """

    name: str
    capability: int
    processors: int
    tflops: float
    bandwidth: float
    host: float
    memory: float
    nvlink: float
    network: float
    source: str


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("H200", 90, 132, 989, 4.8, 55, 141, 450, 50, "NVIDIA H200 (SXM) and DGX H200 data sheets: NVLink 4, ConnectX-7"),
        Chip("H100", 90, 132, 989, 3.35, 55, 80, 450, 50, "NVIDIA H100 (SXM) and DGX H100 data sheets: NVLink 4, ConnectX-7"),
        Chip(
            "A100", 80, 108, 312, 2.04, 25, 80, 300, 25, "NVIDIA A100 (SXM, 80 GB), DGX A100 data sheets: NVLink 3, HDR 200 Gb/s"
        ),
        Chip("RTX 4090", 89, 128, 165, 1.01, 25, 24, 0, 0, "NVIDIA Ada architecture white paper, appendix A"),
    )
}
REACHED_PRODUCTS, REACHED_BYTES = 0.8, 0.9  # of the data sheet's numbers by the best kernels there are
GAP = 0.9e-6  # between two kernels of a graph, s; as measured on an H200
LEAST = 2.2e-6  # a kernel, s
# rows, columns, share of the rate
TILES = ((128, 256, 1.0), (256, 128, 1.0), (128, 128, 0.85), (64, 128, 0.62), (128, 64, 0.62), (64, 64, 0.45))
LONG_ATTENTION = {False: 0.36, True: 0.22}  # of the products' rate, forward and backward
SHARE = {  # of the reached bandwidth, by group; those of ours as measured on an H200 (docs/performance.md)
    "add_layer_norm": 0.72, "gelu": 0.83, "sums": 0.48, "short attention": 0.68, "masked_patch_loss": 0.4, "gather_patches": 0.4,
    "assemble_tokens": 0.6, "gated_sum": 0.8, "adds, casts, copies": 0.83, "norm and update": 0.85, "fused by a compiler": 0.85,
}  # fmt: skip


def seconds(call: Launch, chip: Chip) -> float:
    """Modelled time of a call, without gaps."""
    bandwidth = chip.bandwidth * 1e12 * REACHED_BYTES
    rate = chip.tflops * 1e12 * REACHED_PRODUCTS
    bytes_alone = call.bytes / bandwidth
    if call.group == "products":
        return max(product_seconds(call, chip, rate, bandwidth), bytes_alone / 0.88 + 1.5e-6)
    if call.group == "long attention":
        return max(call.flop / (LONG_ATTENTION[call.backward] * rate) + 5e-6, bytes_alone)
    return max(bytes_alone / SHARE.get(call.group, 0.75) + 1.2e-6, call.launches * LEAST)


def product_seconds(call: Launch, chip: Chip, rate: float, bandwidth: float) -> float:
    """Of the best tile size: waves of tiles, each with a fixed start and end; long sums may be split, and added up afterwards."""
    batch, M, N, K = product_shape(call)
    best = math.inf
    for rows, columns, share in TILES:
        tiles = batch * math.ceil(M / rows) * math.ceil(N / columns)
        for splits in (1, 2, 4, 8, 16, 32):
            if splits > 1 and K / splits < 512:
                break
            tile = 2 * rows * columns * (K / splits) / (rate / chip.processors * share) + (0.45e-6 if splits == 1 else 0.6e-6)
            added = 0 if splits == 1 else 2.5e-6 + batch * M * N * 4 * splits * 2 / bandwidth
            best = min(best, math.ceil(tiles * splits / chip.processors) * tile + 1.5e-6 + added)
    return best


def product_shape(call: Launch) -> tuple[int, int, int, int]:
    """Batch, rows, columns and length of sums."""
    factors = call.shapes[1:] if call.op in ("addmm", "baddbmm") else call.shapes
    if call.op.startswith("convolution"):
        columns, *length = call.shapes[-1] if call.op == "convolution_backward" else call.shapes[1]
        return 1, int(call.flop / (2 * columns * math.prod(length))), columns, math.prod(length)
    first, second = factors[:2]
    return math.prod(first[:-2]), first[-2], second[-1], first[-1]


def step_seconds(calls: Iterable[Launch], chip: Chip) -> float:
    """Modelled time of calls, gaps included, where the GPU is what a step waits for."""
    return sum(seconds(call, chip) + GAP * call.launches for call in calls)
