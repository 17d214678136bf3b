"""Every op at Base pre-training shapes, each direction, every implementation that runs here side by side.

make bench                                     # a table
pytest benchmarks --benchmark-save NAME        # keep, then compare revisions:
pytest benchmarks --benchmark-compare NAME
"""

import pytest
import torch

import avfmae_kernels as K
from avfmae_benchmarks.ops import CASES
from avfmae_kernels.dispatch import IMPLEMENTATIONS, why_not

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BATCH, REPEATS = (256, 20) if DEVICE == "cuda" else (8, 1)  # repeats between synchronisations hide the launches


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda t: str(t).removeprefix("torch."))
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", CASES)
def test_op(benchmark, case, implementation, dtype, direction):
    op, make = CASES[case]
    if op is None and implementation != "reference":
        pytest.skip("is torch's own")
    if op and (reason := why_not(op, implementation, DEVICE)):
        pytest.skip(reason)
    with K.use(implementation):
        runs = make(BATCH, dtype, DEVICE)
        if direction not in runs:
            pytest.skip("has no such direction")

        def repeat():
            for _ in range(REPEATS):
                runs[direction].call()
            if DEVICE == "cuda":
                torch.cuda.synchronize()

        with torch.no_grad():
            benchmark.pedantic(repeat, rounds=10, warmup_rounds=3)
    seconds = benchmark.stats["median"] / REPEATS
    benchmark.extra_info |= {"microseconds": seconds * 1e6, "GB/s": runs[direction].bytes / seconds / 1e9}
