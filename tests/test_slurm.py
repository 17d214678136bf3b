"""The Slurm script with a srun and a scontrol that write down what they are asked."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "train" / "slurm.sh"
SRUN = """#!/bin/bash
echo "srun $* [$TORCH_DISABLE_SHARE_RDZV_TCP_STORE]" >> told
trap 'sleep 0.2; echo saved >> told; exit 1' TERM
[ "$ENDS" ] && exit "$ENDS"
while true; do sleep 0.05; done
"""
SCONTROL = """#!/bin/bash
[ "$1" = show ] && printf 'node1\\nnode2\\n' || echo "scontrol $*" >> told
"""


@pytest.fixture
def job(tmp_path):
    """Starts the script as a batch job of two nodes."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    about = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "8", "SLURM_JOB_ID": "7"}

    def start(**variables):
        env = os.environ | about | variables | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        return subprocess.Popen(["bash", str(SCRIPT), "pretrain", "--out", "my runs"], cwd=tmp_path, env=env)

    return start


def told(folder):
    return (folder / "told").read_text().splitlines() if (folder / "told").exists() else []


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM], ids=lambda n: n.name)
def test_a_job_that_is_stopped_saves_and_is_queued_again(number, job, tmp_path):
    process, deadline = job(), time.monotonic() + 20
    while not told(tmp_path):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.2)  # the trap stands
    process.send_signal(number)
    assert process.wait(20) == 0
    begun, *rest = told(tmp_path)
    assert rest == ["saved", "scontrol requeue 7"]  # in this order
    assert "--nnodes 2 --nproc-per-node 8" in begun and "node1:29500" in begun and begun.endswith("pretrain.py --out my runs [1]")


@pytest.mark.parametrize("status", [0, 3])
def test_a_job_that_ends_by_itself_is_not(status, job, tmp_path):
    assert job(ENDS=str(status)).wait(20) == status
    assert len(told(tmp_path)) == 1
