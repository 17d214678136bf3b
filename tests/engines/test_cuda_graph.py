"""A step that cannot be captured as a CUDA graph goes on eagerly as if nothing had been tried. CUDA's calls are stood in for: no
GPU is needed."""

from contextlib import contextmanager, nullcontext

import pytest
import torch
from steps import random_batch, small
from torch.utils._python_dispatch import TorchDispatchMode

from avfmae.engines.captured import EAGER_STEPS
from avfmae.engines.cuda_graph import CudaGraph

REASON = "CUDA error: operation not permitted when stream is capturing"


class Refused(TorchDispatchMode):
    """Refuses the op of this name, as CUDA refuses what cannot be captured."""

    def __init__(self, name: str):
        super().__init__()
        self.name = name

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if self.name in str(func):
            raise RuntimeError(f"{REASON}\nCompile with TORCH_USE_CUDA_DSA")
        return func(*args, **(kwargs or {}))


class Generator:
    """The CPU's generator with the two methods that a GPU's has."""

    def clone_state(self) -> torch.Tensor:
        return torch.get_rng_state()

    def graphsafe_set_state(self, state: torch.Tensor) -> None:
        torch.set_rng_state(state)


class Device:
    """What a CudaGraph asks of torch.cuda, on a CPU: one stream, and captures that are broken off at an op."""

    device = torch.device("cuda", 0)

    def __init__(self, broken_at: str):
        self.broken_at, self.current, self.pools_ended = broken_at, self, []

    def wait_stream(self, stream) -> None:
        pass

    @contextmanager
    def graph(self, graph, pool, stream, capture_error_mode):
        self.current = "the capture's"  # as torch leaves it when a capture cannot be ended
        with Refused(self.broken_at):
            yield

    def set_stream(self, stream) -> None:
        self.current = stream

    def end_pool(self, device: int, pool: tuple[int, int]) -> None:
        self.pools_ended.append(pool)

    def put_in_place(self, monkeypatch) -> None:
        stand_ins = {
            "Stream": lambda device: self, "CUDAGraph": object, "graph_pool_handle": lambda: (0, 7), "synchronize": lambda: None,
            "current_stream": lambda: self.current, "stream": lambda stream: nullcontext(), "set_stream": self.set_stream,
            "default_generators": (Generator(),), "graph": self.graph,
        }  # fmt: skip
        for name, stand_in in stand_ins.items():
            monkeypatch.setattr(torch.cuda, name, stand_in)
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", self.end_pool, raising=False)
        monkeypatch.setattr(torch._C, "_cuda_releasePool", lambda device, pool: None, raising=False)


def train(steps: int, device: Device | None = None):
    """Losses, the step and how often its function ran; with a device it is captured as there, else never."""
    _, step = small(clip_grad=1.0)
    calls = []

    def counted(batches):
        torch.rand(())  # a step that draws: what a broken capture draws must be drawn again
        calls.append(batches)
        return step(batches)

    execute = CudaGraph(counted, torch.device("cuda", 0), step.signature) if device else counted
    torch.manual_seed(1)
    losses = [float(execute([random_batch(seed)])["loss"]) for seed in range(steps)]
    return losses, step, len(calls)


@pytest.mark.parametrize("broken_at", ["aten.bmm", "avfmae.adamw"], ids=["in the forward pass", "in the update"])
def test_a_step_that_cannot_be_captured_goes_on_eagerly(broken_at, monkeypatch, capsys):
    steps = EAGER_STEPS + 3
    want, plain, _ = train(steps)
    drawn = torch.get_rng_state()
    device = Device(broken_at)
    device.put_in_place(monkeypatch)
    got, step, calls = train(steps, device)
    assert calls == steps + 1  # tried once, each step done once
    assert got == want and int(step.number) == steps
    assert torch.equal(torch.get_rng_state(), drawn)
    for p, q in zip(step.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(p, q)
        for name, moment in step.optimizer.state[p].items():
            assert torch.equal(moment, plain.optimizer.state[q][name])
    assert device.current is device and device.pools_ended == [(0, 7)]
    (line,) = capsys.readouterr().err.splitlines()
    assert "runs eagerly" in line and f"(RuntimeError: {REASON} at " in line


def test_an_interruption_is_no_reason_to_go_on(monkeypatch):
    device = Device("aten.bmm")
    device.put_in_place(monkeypatch)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Refused, "__torch_dispatch__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(EAGER_STEPS + 1, device)
