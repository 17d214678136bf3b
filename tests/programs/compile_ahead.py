"""What ``first.ahead`` compiles without a GPU is what a launch looks for in Triton's cache (TRITON_CACHE_DIR)."""

import os
from pathlib import Path

import torch

import avfmae_kernels as K
from avfmae_benchmarks.first import ahead


def work():
    x = [torch.randn(32, 640, dtype=torch.bfloat16, requires_grad=True) for _ in range(4)]
    K.gated_sum(*x).sum().backward()


def cubins():
    return set(Path(os.environ["TRITON_CACHE_DIR"]).rglob("*.cubin"))


if __name__ == "__main__":  # ahead.compile_all imports this file again in its processes
    requests = ahead.of(work)
    assert {r.name for r in requests} == {"gated_sum_kernel", "gated_sum_backward_kernel"}, requests
    assert list(ahead.compile_all(requests, 90, 1)) == [None] * len(requests)
    compiled = cubins()
    assert len(compiled) >= 2

    from triton.runtime import driver

    driver.set_active(ahead.Description(90))
    for request in requests:  # as the launcher specialises a kernel by real tensors
        kernel = getattr(ahead.importlib.import_module(request.module), request.name)
        tensors = [torch.empty(32, 640, dtype=a) if isinstance(a, torch.dtype) else a for a in request.args]
        assert kernel.run(*tensors, grid=(1,), warmup=True, **dict(request.constants)) is not None
    assert cubins() == compiled
