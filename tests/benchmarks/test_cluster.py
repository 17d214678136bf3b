"""A model of several GPUs: its parts by hand, and what must hold of them."""

import json

import pytest

from avfmae_benchmarks import cluster
from avfmae_benchmarks.cluster import Sizes, send_seconds, shared, trace
from avfmae_benchmarks.gpus import CHIPS
from avfmae_benchmarks.options import TraceConfig
from avfmae_benchmarks.recorder import Launch
from avfmae_benchmarks.tracing import Trace

H100 = CHIPS["H100"]


def work(group, backward, gigabytes):
    return Launch("add", group, "", backward, 1, int(gigabytes * 1e9), 0, 0.0, [], frozenset(), frozenset())


def step(gradients):
    calls = [work("adds, casts, copies", False, 30), work("adds, casts, copies", True, 60), work("norm and update", False, 3)]
    return Trace("ours", calls, upload=0, state=14 * 10**9, gradients=gradients, activations=10**9)


def test_rings_by_hand():
    """Seven eighths of the bytes inside a node; between nodes each GPU sends its own eighth."""
    assert send_seconds(8e9, 8, 1, H100) == pytest.approx(7e9 / (450e9 * cluster.REACHED))
    assert send_seconds(8e9, 1, 4, H100) == pytest.approx(6e9 / (50e9 * cluster.REACHED))
    assert send_seconds(8e9, 8, 4, H100) == pytest.approx(7e9 / (450e9 * cluster.REACHED))  # the slower of the two


def test_what_hides_behind_the_backward_pass_is_not_waited_for():
    sizes = Sizes(10**9, 4 * 10**7, 10**8, 20)
    little, much = (shared(step(size), sizes, "ddp", 8, 4, H100) for size in (10**8, 4 * 10**10))
    assert little["waited_ms"] < 1 and much["waited_ms"] > 100
    assert much["step_ms"] - little["step_ms"] == pytest.approx(much["waited_ms"] - little["waited_ms"], abs=0.2)


def test_a_sharded_model_takes_less_of_each_gpu_and_sends_more():
    sizes = Sizes(10**9, 4 * 10**7, 10**8, 20)
    ddp, fsdp, wider = (shared(step(2 * 10**9), sizes, way, 8, n, H100) for way, n in (("ddp", 1), ("fsdp", 1), ("fsdp", 32)))
    assert ddp["gb_a_gpu"] == pytest.approx(14 + 2 + 1)
    assert fsdp["gb_a_gpu"] == pytest.approx(16 / 8 + 2 * (0.1 + 0.08) + 6 * 0.04 + 1, abs=0.06)
    assert wider["gb_a_gpu"] < fsdp["gb_a_gpu"] and fsdp["sent_ms"] > ddp["sent_ms"]


@pytest.mark.slow
def test_hours_of_the_published_pre_training(capsys):
    trace(TraceConfig(model="tiny", batch=4, gpus=8, nodes=2, json=True))
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [r["strategy"] for r in rows] == ["ddp", "fsdp"] and all(r["total_batch"] == 64 and r["gpus"] == 16 for r in rows)
    for row in rows:
        assert row["hours"] == pytest.approx(1_360_531 // 64 * 100 * row["step_ms"] / 3.6e6, rel=0.01)
    trace(TraceConfig(model="tiny", batch=4, gpus=8))
    assert "not measured" in (printed := " ".join(capsys.readouterr().err.split())) and "79.07 h" in printed
    with pytest.raises(ValueError, match="gpu: got 'RTX 4090' with 8 GPUs on 1 nodes, expected one with NVLink: H200, H100"):
        trace(TraceConfig(gpu="RTX 4090", gpus=8))
