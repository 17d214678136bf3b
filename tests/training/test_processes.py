"""Several processes, by either way of sharing a model, equal one; any number goes on where others stopped, or died."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import PROGRAMS, environment, run_python
from safetensors.torch import load_file

import avfmae
from avfmae.checkpoints import save_weights
from avfmae.checkpoints.state import checkpoints
from avfmae.cli import main
from avfmae.stages.config import PretrainConfig
from avfmae.stages.pretrain import pretrain
from avfmae.training.config import OptimConfig
from avfmae.training.runlog import read_log

SCRIPT = Path(__file__).parents[2] / "train" / "pretrain.py"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")


def losses(out):
    return [line["loss"] for line in read_log(out / "log.jsonl") if "loss" in line]


def run(*arguments, processes=1):
    """A script in one process, or under torchrun in several."""
    launcher = [*TORCHRUN, processes] if processes > 1 else []
    for _ in range(2):
        done = run_python(*launcher, *arguments)
        # once in thirty runs a gloo process aborts as it leaves, its work done
        if "terminate called without an active exception" not in done.stderr:
            break
    assert done.returncode == 0, done.stderr[-3000:]


HAS_FSDP = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13)
needs_fsdp = pytest.mark.skipif(not HAS_FSDP, reason="FSDP2 needs torch 2.13")
WAYS = [pytest.param("ddp"), pytest.param("fsdp", marks=needs_fsdp)]


@pytest.fixture(scope="module")
def of_one_process(tmp_path_factory):
    return gradients(tmp_path_factory.mktemp("gradients"), "ddp")["ddp"]


def gradients(folder, *ways, precision="float32", micro_batches=1, recompute="none", processes=1):
    """What ``programs/gradients.py`` finds, by way of sharing."""
    run(PROGRAMS / "gradients.py", folder, precision, micro_batches, recompute, *ways, processes=processes)
    return {way: torch.load(folder / f"{way}.pt") for way in ways}


def distances(one, other):
    """Relative, of every tensor of two dictionaries."""
    assert one.keys() == other.keys() and one
    return {n: float((t - other[n]).norm()) / max(float(t.norm()), 1e-5) for n, t in one.items() if t.is_floating_point()}


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
@pytest.mark.parametrize(
    ("processes", "recompute"),
    [(2, "none"), pytest.param(4, "none", marks=pytest.mark.exhaustive), pytest.param(2, "full", marks=pytest.mark.exhaustive)],
)
def test_several_processes_give_the_gradients_of_one(of_one_process, processes, recompute, tmp_path):
    """Contrastive term gathered, batch statistics shared, masked means over all: exactly the whole batch's gradient."""
    ways = ("ddp", "fsdp") if HAS_FSDP else ("ddp",)
    one = of_one_process
    for way, several in gradients(tmp_path, *ways, recompute=recompute, processes=processes).items():
        for before, after in zip(one["values"], several["values"], strict=True):
            assert before == pytest.approx(after, rel=2e-4), way
        assert max(distances(one["gradients"], several["gradients"]).values()) < 2e-4, way
        for kind in ("weights", "averaged"):
            assert max(distances(one[kind], several[kind]).values()) < 2e-3, (way, kind)  # after three steps of AdamW


@pytest.mark.xdist_group("processes")
@pytest.mark.parametrize("parallel", [WAYS[0], pytest.param("fsdp", marks=[needs_fsdp, pytest.mark.exhaustive])])
def test_torchrun_trains_as_one_process_does_which_goes_on_where_two_stopped(drawn, parallel, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    settings = (
        "--preset tiny --data.workers 0 --optim.total-batch 6 --optim.epochs 1 --optim.lr 0.01 --log-steps 1 --precision float32"
    )
    init = tmp_path / "init.safetensors"  # which the main process alone reads for the comparison of runs
    save_weights(avfmae.AVFMAEForPretraining(avfmae.ModelConfig.preset("tiny")), init)
    common = ["--manifest", str(drawn), *settings.split(), "--init", str(init)]
    main(["pretrain", *common, "--out", str(one)])
    run(SCRIPT, *common, "--out", two, "--parallel", parallel, "--stop-after", 1, processes=2)
    assert len(losses(two)) == 1 and not (two / "weights.safetensors").exists()
    main(["pretrain", *common, "--out", str(two)])
    assert len(losses(one)) > 1 and np.allclose(losses(one), losses(two), rtol=1e-3)
    assert load_file(one / "weights.safetensors").keys() == load_file(two / "weights.safetensors").keys()


@pytest.mark.exhaustive
@pytest.mark.parametrize(("precision", "micro_batches"), [("float32", 2), ("bf16", 1)], ids=["accumulated", "bf16"])
def test_both_ways_of_sharing_give_the_same_step(precision, micro_batches, tmp_path):
    """With micro-batches, and in bfloat16, whose sums are rounded in another order."""
    found = gradients(tmp_path, "ddp", "fsdp", precision=precision, micro_batches=micro_batches, processes=2)
    one, other = found.values()
    loss, norm = (2e-4, 2e-4) if precision == "float32" else (2e-3, 2e-2)
    for a, b in zip(one["values"], other["values"], strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=loss) and a["grad_norm"] == pytest.approx(b["grad_norm"], rel=norm)
    if precision == "float32":
        assert max(distances(one["gradients"], other["gradients"]).values()) < 2e-4


def pretraining(manifest, out, **changes):
    """Eight steps with a checkpoint after every second one."""
    optim = OptimConfig(lr=0.01, epochs=4, total_batch=8, ema=0.9)
    config = PretrainConfig(
        preset="tiny", manifest=manifest, out=out, optim=optim, precision="float32", save_steps=2, log_steps=1, **changes
    )
    config.data.workers = 0
    return config


def command(manifest, out, *more):
    """:func:`pretraining` as a command line."""
    return [
        SCRIPT, "--manifest", manifest, "--out", out, "--preset", "tiny", "--data.workers", "0", "--optim.lr", "0.01",
        "--optim.epochs", "4", "--optim.total-batch", "8", "--optim.ema", "0.9", "--precision", "float32",
        "--save-steps", "2", "--log-steps", "1", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def alone(drawn, tmp_path_factory):
    """The run of one process."""
    out = tmp_path_factory.mktemp("alone")
    pretrain(pretraining(drawn, out))
    assert len(losses(out)) == 8
    return out


@pytest.mark.exhaustive
@pytest.mark.parametrize("parallel", WAYS)
def test_a_checkpoint_of_four_processes_goes_on_with_two_and_with_one(parallel, drawn, alone, tmp_path):
    for processes, stop in ((4, 2), (2, 4), (1, 6), (2, 8)):
        run(*command(drawn, tmp_path, "--parallel", parallel, "--stop-after", stop), processes=processes)
        assert len(losses(tmp_path)) == stop
    assert np.allclose(losses(tmp_path), losses(alone), rtol=2e-4)
    for name in ("weights.safetensors", "weights-averaged.safetensors"):
        assert max(distances(load_file(alone / name), load_file(tmp_path / name)).values()) < 2e-3


@pytest.mark.exhaustive
@pytest.mark.parametrize("parallel", WAYS)
def test_a_rank_is_killed_and_the_run_goes_on_by_itself(parallel, drawn, tmp_path):
    """Torchrun starts the group again from its last checkpoint, and the losses are to the bit those of an unbroken run."""
    more, whole, killed = ("--parallel", parallel), tmp_path / "whole", tmp_path / "killed"
    launched = [sys.executable, *TORCHRUN, 2, "--max-restarts", 2, *command(drawn, killed, *more)]
    group = subprocess.Popen([*map(str, launched)], stderr=subprocess.PIPE, text=True, env=environment())
    deadline = time.monotonic() + 200
    while len(losses(killed)) < 4 or not checkpoints(killed / "checkpoints"):
        assert group.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    children = Path(f"/proc/{group.pid}/task/{group.pid}/children").read_text().split()
    (rank,) = [c for c in children if "RANK=1" in Path(f"/proc/{c}/environ").read_text().split("\0")]
    os.kill(int(rank), signal.SIGKILL)
    said = group.communicate(timeout=600)[1]
    assert group.returncode == 0 and "exitcode: -9" in said, said[-3000:]
    run(*command(drawn, whole, *more), processes=2)
    assert len(losses(whole)) == 8 and losses(killed) == losses(whole)
    assert not list((killed / "checkpoints").glob(".writing-*"))


@pytest.mark.slow
def test_a_damaged_distributed_checkpoint_falls_back_to_the_one_before(drawn, alone, tmp_path, capsys):
    """One process may write what several are to go on with; a flipped bit is found."""
    pretrain(pretraining(drawn, tmp_path, stop_after=6, parallel="fsdp"))
    assert [path.name for path in checkpoints(tmp_path / "checkpoints")] == ["step-00000004", "step-00000006"]
    newest = tmp_path / "checkpoints" / "step-00000006" / "__0_0.distcp"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    with pytest.raises(ValueError, match="belongs to a run with another seed"):
        pretrain(pretraining(drawn, tmp_path, seed=1, parallel="fsdp"))
    capsys.readouterr()
    pretrain(pretraining(drawn, tmp_path))
    assert "continuingfromstep-00000004" in "".join(capsys.readouterr().err.split())
    assert losses(tmp_path) == losses(alone)


@needs_fsdp
@pytest.mark.slow
def test_a_sharded_run_in_bfloat16_ends_with_its_report(drawn, tmp_path):
    """Whose picture the model makes from gathered weights."""
    run(*command(drawn, tmp_path, "--parallel", "fsdp", "--precision", "bf16", "--optim.epochs", 1), processes=2)
    assert len(losses(tmp_path)) == 2 and (tmp_path / "report.html").exists()


@needs_fsdp
@pytest.mark.exhaustive
def test_sharded_fine_tuning_evaluates_and_writes_whole_weights(drawn, tmp_path):
    """Layer decay, frozen statistics, low-rank updates, and evaluations of which each process does its own clips."""
    init, found = tmp_path / "init.safetensors", {}
    save_weights(avfmae.AVFMAEForPretraining(avfmae.ModelConfig.preset("tiny")), init)
    settings = "--preset tiny --data.workers 0 --optim.total-batch 6 --optim.epochs 1 --precision float32 --lora 4 --log-steps 1"
    for parallel in ("ddp", "fsdp"):
        out = tmp_path / parallel
        more = ("--model.drop-path", 0, "--parallel", parallel, "--init", init, "--out", out)
        run(SCRIPT.with_name("finetune.py"), "--manifest", drawn, *settings.split(), *more, processes=2)
        found[parallel] = avfmae.Predictor.from_pretrained(out / "weights.safetensors").model.state_dict()
        assert (out / "results.json").exists()
    assert np.allclose(losses(tmp_path / "ddp"), losses(tmp_path / "fsdp"), rtol=2e-4)
    assert max(distances(found["ddp"], found["fsdp"]).values()) < 2e-3
