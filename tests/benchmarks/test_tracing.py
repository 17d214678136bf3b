"""What a step asks of a GPU, counted on tensors without memory."""

import json

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

import avfmae
import avfmae_kernels as K
from avfmae.tasks.reconstruction import pretraining_loss
from avfmae_benchmarks import sides
from avfmae_benchmarks.gpus import CHIPS, step_seconds
from avfmae_benchmarks.options import TraceConfig
from avfmae_benchmarks.recorder import Recorder, fused, multi_tensor_launches
from avfmae_benchmarks.tracing import trace, traced

# What a step of these may take at most: launches, GB and TFLOP with the update, and launches of norm and update alone. A change
# that adds a pass over memory fails here; one that removes passes lowers the numbers.
BUDGETS = {("pretrain", "base", 256): (2830, 152, 20.5, 33), ("finetune", "base", 32): (2480, 60, 7.7, 31)}


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "size", "batch"), BUDGETS, ids=str)
def test_a_step_stays_within_its_budget(stage, size, batch):
    launches, gb, tflop, update = BUDGETS[stage, size, batch]
    t = traced("ours", stage, sides.config("ours", stage, size), batch)
    assert 0.9 * launches < t.launches <= launches and 0.9 * gb < t.bytes / 1e9 <= gb and 0.9 * tflop < t.flop / 1e12 <= tflop
    assert sum(c.launches for c in t.calls if c.group == "norm and update") <= update


@pytest.mark.slow
def test_operations_are_those_of_the_products_that_run():
    """Against torch's own counter in a real step of plain PyTorch, which keeps what long attention computes twice."""
    cfg = sides.config("ours", "pretrain", "tiny")
    model, batch = avfmae.AVFMAEForPretraining(cfg), sides.host_batch(cfg, "pretrain", 2)
    with K.use("reference"), FlopCounterMode(display=False) as counter:
        pretraining_loss(model, batch)[0].backward()
    t = traced("reference", "pretrain", cfg, 2, "float32")
    assert t.flop == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_bytes_of_a_product_a_broadcast_sum_and_a_view():
    with FakeTensorMode(), Recorder() as recorder:
        a, b, bias = torch.empty(4, 8), torch.empty(8, 16), torch.empty(16)
        (a @ b + bias).view(2, 32)
    product, added = recorder.launches
    assert (product.read, product.written, product.flop) == ((4 * 8 + 8 * 16) * 4, 4 * 16 * 4, 2 * 4 * 8 * 16)
    assert (added.read, added.written) == ((4 * 16 + 16) * 4, 4 * 16 * 4)
    assert step_seconds([product, added], CHIPS["H100"]) > step_seconds([added], CHIPS["H100"]) > 0


def test_a_mask_of_known_count_indexes_tensors_without_memory():
    with FakeTensorMode():
        mask, x = torch.empty(2, 10, dtype=torch.bool), torch.empty(2, 10, 3)
        with Recorder([(mask, 8)]):
            assert x[mask].shape == (8, 3) and x[~mask].shape == (12, 3)


@pytest.mark.parametrize(
    ("numels", "lists", "launches"),
    [([10] * 110, 1, 1), ([10] * 111, 1, 2), ([10] * 37, 4, 2), ([65536 * 320], 2, 1), ([65536 * 320 + 1], 2, 2)],
)
def test_multi_tensor_kernels_are_cut_as_torch_cuts_them(numels, lists, launches):
    assert multi_tensor_launches(numels, lists) == launches


def test_fusion_keeps_what_others_read_and_never_turns_an_order_round():
    with FakeTensorMode(), Recorder() as recorder:
        x, w = torch.empty(64, 64), torch.empty(64, 64)
        y = (x + 1) * 2
        z = y @ w
        (z + y).exp()
    calls = list(fused(recorder.launches))
    assert [c.op for c in calls] == ["fused", "mm", "fused"]
    assert [c.bytes for c in calls] == [2 * 64 * 64 * 4, 3 * 64 * 64 * 4, 3 * 64 * 64 * 4]  # z and y, and what comes of them


@pytest.mark.slow
def test_one_line_a_side_for_programs(capsys):
    trace(TraceConfig(model="tiny", sides=("ours", "hicmae"), batch=4, json=True))
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [r["side"] for r in rows] == ["ours", "hicmae"]
    assert all(r["launches"] > 100 and r["gb"] > 0 and r["tflop"] > 0 and r["modelled_ms"] > 0 for r in rows)
    with pytest.raises(ValueError, match="gpu: got 'B300'"):
        trace(TraceConfig(gpu="B300"))
