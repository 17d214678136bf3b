"""The terminal: what a command says goes to standard error, and only the main process of a distributed run says it."""

import contextlib
import io
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator

from rich.console import Console

from avfmae.files import printable

IS_MAIN = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun started
console = Console(stderr=True, quiet=not IS_MAIN, markup=False)  # names of files have brackets


def say(text: str) -> None:
    """A line as it is, however long."""
    print(printable(text), file=sys.stderr)


def print_fitted(text: str) -> None:
    """Prints help on standard output; lines that do not fit the terminal are wrapped."""
    width = shutil.get_terminal_size().columns
    print("\n".join(line if len(line) <= width else textwrap.fill(line, width) for line in text.splitlines()))


@contextlib.contextmanager
def narrow() -> Iterator[None]:
    """A terminal of 100 columns at most: in wider ones options would stand side by side."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(min(100, shutil.get_terminal_size().columns))
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


@contextlib.contextmanager
def help_fitted() -> Iterator[None]:
    """Fits to the terminal what is printed inside."""
    text = io.StringIO()
    try:
        with contextlib.redirect_stdout(text), narrow():
            yield
    finally:
        if text.getvalue():
            print_fitted(text.getvalue())
