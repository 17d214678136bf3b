"""The benchmarks of a step and of a kernel, as small as they can be."""

from avfmae_benchmarks.kernels import KernelsConfig, kernels
from avfmae_benchmarks.step import StepConfig, step

if __name__ == "__main__":
    shared = {"precisions": ("float32",), "rounds": 1, "device": "cpu", "save": False}
    step(StepConfig(model="tiny", sides=("ours",), batch=2, warm_up=0, **shared))
    kernels(KernelsConfig(only=("gated_sum",), batch=1, **shared))
