"""Several processes: the same numbers however they share the model, checkpoints for any number of them, and their deaths."""

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

from avfmae.checkpoints import load_released, save_weights
from avfmae.checkpoints.state import checkpoints
from avfmae.models.pretraining import AVFMAEForPretraining
from avfmae.stages.config import PretrainConfig
from avfmae.stages.pretrain import pretrain
from avfmae.training.config import OptimConfig
from avfmae.training.runlog import read_log

SCRIPT = Path(__file__).parents[2] / "train" / "pretrain.py"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
RUNS = ("ddp,float32,1,none", "fsdp,float32,1,selective", "ddp,float32,2,none", "fsdp,float32,2,full")
BF16 = ("ddp,bf16,1,none", "fsdp,bf16,1,none")


def run(*arguments, processes=1, launcher=()):
    """A script in one process, or under torchrun in several."""
    launched = [*TORCHRUN, processes, *launcher] if processes > 1 else []
    for _ in range(2):
        done = run_python("-W", "ignore", *launched, *arguments)
        # once in thirty runs a gloo process aborts as it leaves, its work done
        if "terminate called without an active exception" not in done.stderr:
            break
    assert done.returncode == 0, done.stderr[-3000:]


def losses(out):
    return [line["loss"] for line in read_log(out / "log.jsonl") if "loss" in line]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """What one process finds."""
    path = tmp_path_factory.mktemp("steps") / "one.pt"
    run(PROGRAMS / "gradients.py", path, RUNS[0], BF16[0])
    return torch.load(path)


def distance(a, b):
    """The largest relative distance of two dicts' tensors."""
    assert a.keys() == b.keys()
    return max(float((a[n].float() - b[n].float()).norm()) / max(float(a[n].float().norm()), 1e-5) for n in a)


@pytest.mark.parametrize(
    ("processes", "runs"),
    [
        pytest.param(2, RUNS[:2], marks=pytest.mark.slow, id="2"),
        pytest.param(2, (*RUNS, *BF16), marks=pytest.mark.exhaustive, id="2, all"),
        pytest.param(4, (*RUNS, *BF16), marks=pytest.mark.exhaustive, id="4, all"),
    ],
)
def test_processes_give_the_gradients_losses_and_weights_of_one(processes, runs, one, tmp_path):
    """Contrastive term gathered, batch statistics shared, masked means over all: exactly the whole batch's gradient."""
    run(PROGRAMS / "gradients.py", tmp_path / "several.pt", *runs, processes=processes)
    whole, several = one[RUNS[0]], torch.load(tmp_path / "several.pt")
    shares = several[RUNS[0]]["scored"]
    assert len({sum(s) for s in shares}) > 1  # not vacuous: shares differ between the processes
    assert several[RUNS[1]]["held"] < 1.1 * several[RUNS[0]]["held"] / processes  # FSDP holds a part of each weight
    for settings in set(runs) - set(BF16):
        # of several micro-batches the contrast is another one, with which there is no run of one process
        expected, found = whole if settings in RUNS[:2] else several[RUNS[2]], several[settings]
        for a, b in zip(expected["values"], found["values"], strict=True):
            assert a == pytest.approx(b, rel=2e-4), settings
        for what in ("gradients", "weights", "averaged"):
            assert distance(expected[what], found[what]) < 2e-4, (settings, what)
    moved = distance(whole["weights"], AVFMAEForPretraining(PretrainConfig(preset="tiny").model).state_dict())
    assert moved > 0.1
    for settings in set(runs) & set(BF16):  # whose sums are rounded in another order
        for a, b in zip(one[BF16[0]]["values"], several[settings]["values"], strict=True):
            assert a["loss"] == pytest.approx(b["loss"], rel=2e-3), settings
            assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=2e-2), settings


def pretraining(manifest, out, **changes):
    optim = OptimConfig(lr=0.01, epochs=4, total_batch=8, ema=0.9)
    run = {"precision": "float32", "save_steps": 2, "log_steps": 1} | changes
    config = PretrainConfig(preset="tiny", manifest=manifest, out=out, optim=optim, **run)
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
    """The run of one process: eight steps."""
    out = tmp_path_factory.mktemp("alone")
    pretrain(pretraining(drawn, out))
    assert len(losses(out)) == 8
    return out


@pytest.mark.exhaustive
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_checkpoint_of_four_processes_goes_on_with_two_and_with_one(parallel, drawn, alone, tmp_path):
    for processes, stop in ((4, 2), (2, 4), (1, 6), (2, 8)):
        run(*command(drawn, tmp_path, "--parallel", parallel, "--stop-after", stop), processes=processes)
        assert len(losses(tmp_path)) == stop
    assert np.allclose(losses(tmp_path), losses(alone), rtol=2e-4)
    for name in ("weights", "weights-averaged"):
        states = []
        for folder in (tmp_path, alone):
            model = AVFMAEForPretraining(PretrainConfig(preset="tiny").model)
            load_released(model, folder / f"{name}.safetensors")
            states.append(model.state_dict())
        assert distance(*states) < 2e-3


@pytest.mark.exhaustive
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_rank_is_killed_and_the_run_goes_on_by_itself(parallel, drawn, tmp_path):
    """Torchrun starts the group again from its last checkpoint, and the losses are to the bit those of an unbroken run."""
    more = ("--parallel", parallel)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    launched = [sys.executable, "-W", "ignore", *TORCHRUN, "2", "--max-restarts", "2", *command(drawn, killed, *more)]
    group = subprocess.Popen([*map(str, launched)], stderr=subprocess.PIPE, text=True, env=environment())
    deadline = time.monotonic() + 200
    while len(losses(killed)) < 4 or not checkpoints(killed / "checkpoints"):
        assert group.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    children = Path(f"/proc/{group.pid}/task/{group.pid}/children").read_text().split()
    ranks = [c for c in children if "RANK=1" in Path(f"/proc/{c}/environ").read_text().split("\0")]
    assert len(ranks) == 1
    os.kill(int(ranks[0]), signal.SIGKILL)
    said = group.communicate(timeout=300)[1]
    assert group.returncode == 0 and "exitcode: -9" in said, said[-3000:]
    run(*command(drawn, whole, *more), processes=2)
    assert len(losses(whole)) == 8 and losses(killed) == losses(whole)
    assert not list((killed / "checkpoints").glob(".writing-*"))


@pytest.mark.slow
def test_a_damaged_distributed_checkpoint_falls_back_to_the_one_before(drawn, alone, tmp_path, capsys):
    """One process may write what several are to go on with; it is compared, read, and told from what is damaged."""
    settings = {"parallel": "fsdp"}
    pretrain(pretraining(drawn, tmp_path, stop_after=6, **settings))
    assert [path.name for path in checkpoints(tmp_path / "checkpoints")] == ["step-00000004", "step-00000006"]
    newest = tmp_path / "checkpoints" / "step-00000006" / "__0_0.distcp"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    with pytest.raises(ValueError, match="belongs to a run with another seed"):
        pretrain(pretraining(drawn, tmp_path, seed=1, **settings))
    capsys.readouterr()
    pretrain(pretraining(drawn, tmp_path))  # as the whole model, by one process
    assert "continuingfromstep-00000004" in "".join(capsys.readouterr().err.split())
    assert losses(tmp_path) == losses(alone)


@pytest.mark.exhaustive
def test_sharded_fine_tuning_evaluates_and_writes_whole_weights(drawn, tmp_path):
    """Layer decay, frozen statistics, low-rank updates, and evaluations of which each process does its own clips."""
    from avfmae.inference.predictor import Predictor

    init = tmp_path / "init.safetensors"
    save_weights(AVFMAEForPretraining(PretrainConfig(preset="tiny").model), init)
    found = {}
    for parallel in ("ddp", "fsdp"):
        out = tmp_path / parallel
        settings = "--preset tiny --data.workers 0 --optim.total-batch 6 --optim.epochs 1 --precision float32 --lora 4"
        script = SCRIPT.with_name("finetune.py")
        more = ("--model.drop-path", 0, "--log-steps", 1, "--parallel", parallel, "--init", init, "--out", out)
        run(script, "--manifest", drawn, *settings.split(), *more, processes=2)
        found[parallel] = (losses(out), Predictor.from_pretrained(out / "weights.safetensors"))
        assert (out / "results.json").exists()
    assert np.allclose(found["ddp"][0], found["fsdp"][0], rtol=2e-4)
