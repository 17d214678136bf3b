"""Files that are there whole or not at all, and what is in them."""

import hashlib
import os
import platform
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, where nothing is locked
    fcntl = None


class atomic_write:
    """Gives a temporary path beside ``path``; on a clean exit it is synced to disk and takes the place of ``path``."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.temporary = Path(f"{path}.part")

    def __enter__(self) -> Path:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return self.temporary

    def __exit__(self, kind, value, traceback):
        if kind is not None:
            self.temporary.unlink(missing_ok=True)
            return
        with open(self.temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(self.temporary, self.path)


def digest(paths: Iterable[str | os.PathLike]) -> str:
    """SHA-256 of the files' bytes, one file after the other."""
    total = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                total.update(block)
    return total.hexdigest()


def cell(value: object) -> object:
    """A value for a CSV file. A text that a spreadsheet would run as a formula gets an apostrophe, which makes it text there."""
    if not isinstance(value, str) or not value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return value
    try:
        [float(part) for part in value.replace(",", " ").split()]
        return value  # numbers
    except ValueError:
        return f"'{value}"


@contextmanager
def locked(path: str | os.PathLike, wait: bool = True) -> Iterator[None]:
    """Keeps other processes out. The lock ends with the process that holds it, however that ends; the file stays.

    Raises:
        ValueError: another process holds it, and ``wait`` is False; names it.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                file.seek(0)
                raise ValueError(
                    f"{Path(path).parent}: {file.read() or 'another process'} works there; choose another out"
                ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} of {platform.node()}")
        file.flush()
        yield


def printable(text: str) -> str:
    """The text with escapes for what a terminal would obey or cannot show: control characters, bytes that are not UTF-8."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
