"""What works for a process ends with it, also where it is killed."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

POOL = Path(__file__).with_name("programs") / "pool.py"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")
def test_a_killed_process_leaves_none_that_work_for_it():
    with subprocess.Popen([sys.executable, POOL], stdout=subprocess.PIPE, text=True) as pool:
        assert pool.stdout is not None
        workers = [int(pool.stdout.readline()) for _ in range(2)]
        assert all(map(is_there, workers))
        pool.kill()
        last = time.monotonic() + 30
        while any(map(is_there, workers)):
            assert time.monotonic() < last
            time.sleep(0.02)


def is_there(process: int) -> bool:
    """Whether a process runs; one that has ended and is waited for by nobody does not."""
    state = Path(f"/proc/{process}/stat")
    try:
        return state.read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
