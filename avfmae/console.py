"""The terminal: what a command says goes to standard error, and only the main process of a distributed run says it."""

import os
import sys

from rich.console import Console

from avfmae.files import printable

IS_MAIN = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun started
console = Console(stderr=True, quiet=not IS_MAIN, markup=False)  # names of files have brackets


def say(text: str) -> None:
    """A line as it is, however long."""
    print(printable(text), file=sys.stderr)
