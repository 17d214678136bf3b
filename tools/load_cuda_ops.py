"""Loads the CUDA module of the torch and the package on the path, and fails if an op that is named has no CUDA kernel."""

import sys

import torch

import avfmae_kernels._cuda  # which registers the kernels; the package around it declares the ops

if __name__ == "__main__":
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    missing = [op for op in sys.argv[1:] if not has_kernel(f"avfmae::{op}", "CUDA")]
    sys.exit(f"without a CUDA kernel: {', '.join(missing)}" if missing else 0)
