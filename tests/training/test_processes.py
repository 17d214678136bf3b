"""Several processes, by either way of sharing a model, equal one; and one goes on where several stopped."""

from pathlib import Path

import numpy as np
import pytest
import torch
from processes import PROGRAMS, run_python
from safetensors.torch import load_file

import avfmae
from avfmae.checkpoints import save_weights
from avfmae.training.runlog import read_log


def losses(out):
    return [line["loss"] for line in read_log(out / "log.jsonl") if "loss" in line]


def run(*arguments, processes=1):
    """A script in one process, or under torchrun in several."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    for _ in range(2):
        done = run_python(*launcher, *arguments)
        # once in thirty runs a gloo process aborts as it leaves, its work done
        if "terminate called without an active exception" not in done.stderr:
            break
    assert done.returncode == 0, done.stderr[-3000:]


needs_fsdp = pytest.mark.skipif(tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13), reason="FSDP2 needs torch 2.13")
WAYS = [pytest.param("ddp"), pytest.param("fsdp", marks=needs_fsdp)]


@pytest.fixture(scope="module")
def of_one_process(tmp_path_factory):
    path = tmp_path_factory.mktemp("gradients") / "one.pt"
    run(PROGRAMS / "gradients.py", path, "ddp", "float32", 1, "none")
    return torch.load(path)


def distances(one, other):
    """Relative, of every tensor of two dictionaries."""
    assert one.keys() == other.keys() and one
    return {n: float((t - other[n]).norm()) / max(float(t.norm()), 1e-5) for n, t in one.items() if t.is_floating_point()}


@pytest.mark.xdist_group("processes")
@pytest.mark.parametrize("parallel", WAYS)
@pytest.mark.parametrize(
    ("processes", "recompute"),
    [(2, "none"), pytest.param(4, "none", marks=pytest.mark.exhaustive), pytest.param(2, "full", marks=pytest.mark.exhaustive)],
)
def test_several_processes_give_the_gradients_of_one(of_one_process, parallel, processes, recompute, tmp_path):
    """Contrastive term gathered, batch statistics shared, masked means over all: exactly the whole batch's gradient."""
    run(PROGRAMS / "gradients.py", tmp_path / "all.pt", parallel, "float32", 1, recompute, processes=processes)
    one, several = of_one_process, torch.load(tmp_path / "all.pt")
    for before, after in zip(one["values"], several["values"], strict=True):
        assert before == pytest.approx(after, rel=2e-4)
    assert max(distances(one["gradients"], several["gradients"]).values()) < 2e-4
    for kind in ("weights", "averaged"):
        assert max(distances(one[kind], several[kind]).values()) < 2e-3, kind  # after three steps of AdamW


@pytest.mark.xdist_group("processes")
@pytest.mark.parametrize("parallel", WAYS)
def test_torchrun_trains_as_one_process_does_which_goes_on_where_two_stopped(drawn, parallel, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    settings = (
        "--preset tiny --data.workers 0 --optim.total-batch 6 --optim.epochs 1 --optim.lr 0.01 --log-steps 1 --precision float32"
    )
    init = tmp_path / "init.safetensors"  # which the main process alone reads for the comparison of runs
    save_weights(avfmae.AVFMAEForPretraining(avfmae.ModelConfig.preset("tiny")), init)
    common = ["--manifest", drawn, *settings.split(), "--init", init]
    script = Path(__file__).parents[2] / "train" / "pretrain.py"
    run(script, *common, "--out", one)
    run(script, *common, "--out", two, "--parallel", parallel, "--stop-after", 1, processes=2)
    assert len(losses(two)) == 1 and not (two / "weights.safetensors").exists()
    run(script, *common, "--out", two)
    assert len(losses(one)) > 1 and np.allclose(losses(one), losses(two), rtol=1e-3)
    assert load_file(one / "weights.safetensors").keys() == load_file(two / "weights.safetensors").keys()
