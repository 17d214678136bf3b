"""Processes that end when they should: with their parent, or past their time."""

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

DIE_WITH_PARENT = 1  # prctl(2): PR_SET_PDEATHSIG


def die_with_parent() -> None:
    """The kernel kills this process when its parent is gone, however that went (Linux)."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def run(command: Sequence[str], seconds: float, log: Path, environment: dict[str, str]) -> int | None:
    """Runs a command, its output added to ``log``. Returns its exit code; None: it took longer, and was killed with all of its
    children."""
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True)
    try:
        return process.wait(max(0.1, seconds))
    except subprocess.TimeoutExpired:
        return None
    finally:
        stop(process)


def stop(process: subprocess.Popen) -> None:
    """Ends a command and everything that it has started in its process group."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        process.wait()
    time.sleep(0.2)  # for a GPU to be free of them
