"""Files that are there whole or not at all, and what is in them."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path


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


def printable(text: str) -> str:
    """The text with escapes for what a terminal would obey or cannot show: control characters, bytes that are not UTF-8."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
