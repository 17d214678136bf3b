"""Processes that tests start, in the environment that a user has."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent
PROGRAMS = TESTS / "programs"


def environment(**changes: str) -> dict[str, str]:
    """This process's variables without those that ``conftest.py`` sets for it, and with ``changes``."""
    return {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"OMP_NUM_THREADS": "1"} | changes


def run_python(*arguments: object, **options) -> subprocess.CompletedProcess[str]:
    """Runs Python with arguments and keeps what it prints; ``options`` are :func:`subprocess.run`'s."""
    options = {"env": environment(), "capture_output": True, "text": True} | options
    return subprocess.run([sys.executable, *map(str, arguments)], **options)


def run_program(name: str, *arguments: object, **options) -> subprocess.CompletedProcess[str]:
    """Runs ``tests/programs/NAME.py``, as :func:`run_python` does."""
    return run_python(PROGRAMS / f"{name}.py", *arguments, **options)
