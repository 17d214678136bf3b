"""Files that are there whole or not at all, and what is in them."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a temporary path beside ``path``; on a clean exit it is synced to disk and takes the place of ``path``."""
    path, temporary = Path(path), Path(f"{path}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def digest(paths: Iterable[str | os.PathLike]) -> str:
    """SHA-256 of the files' bytes, one file after the other."""
    total = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            hashlib.file_digest(file, lambda: total)
    return total.hexdigest()


def printable(text: str) -> str:
    """The text with escapes for what a terminal would obey or cannot show: control characters, bytes that are not UTF-8."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
