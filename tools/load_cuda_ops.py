"""Loads the CUDA module of the torch and the package on the path, and fails if an op that is named has no CUDA kernel."""

import sys

import torch

if __name__ == "__main__":
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    missing = [op for op in sys.argv[1:] if not has_kernel(f"avfmae::{op}", "CUDA")]
    sys.exit(f"without a CUDA kernel: {', '.join(missing)}" if missing else 0)
