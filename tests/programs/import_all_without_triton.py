"""Imports every module where Triton is not installed; the kernels must say so."""

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.modules["triton"] = None
    runpy.run_path(str(Path(__file__).with_name("import_all.py")), run_name="__main__")
    from avfmae_kernels.dispatch import why_not

    for device in ("cpu", "cuda"):
        assert why_not("gather_patches", "triton", device) == "triton is not installed"
