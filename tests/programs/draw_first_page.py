"""Writes the page of a first run with one row of results to the folder that is given."""

import sys
from pathlib import Path

from avfmae_benchmarks import results
from avfmae_benchmarks.first.page import write
from avfmae_benchmarks.first.parts import Run

ROW = {
    "device": "d", "date": "t", "case": "c", "op": "o", "precision": "float32", "direction": "forward", "implementation": "cpp",
    "gflops": 1.0, "flops_per_byte": 1.0, "copy_gb_per_s": 1.0, "matrix_gflops": 9.0,
}  # fmt: skip

if __name__ == "__main__":
    out = Path(sys.argv[1])
    results.append("kernels", [ROW], out)
    write(Run(out, "cuda"))
