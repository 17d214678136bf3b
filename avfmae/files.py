"""Files that are there whole or not at all, and what is in them."""

import csv
import errno
import hashlib
import json
import os
import platform
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal

try:
    import fcntl
except ImportError:  # Windows, where nothing is locked
    fcntl = None


def check_writable(out: str | os.PathLike, is_folder: bool = False) -> None:
    """Makes the folder that will be written to, and a file in it for a moment, so that a place that cannot be written to is told
    before the work, not after it.

    Raises:
        ValueError: names ``out``, and says why not.
    """
    folder = Path(out) if is_folder else Path(out).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        if not is_folder and Path(out).is_dir():
            raise IsADirectoryError(errno.EISDIR, "is a folder, expected a file")
    except OSError as error:
        raise ValueError(f"out: {out}: cannot be written to ({error.strerror or error})") from error


@contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a temporary path beside ``path``; on a clean exit it is synced to disk and takes the place of ``path``."""
    path, temporary = Path(path), Path(f"{path}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # as the user's umask has it; libraries put files in its place that nobody else may read
        yield temporary
        temporary.chmod(mode)
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


def cell(value: object) -> object:
    """A value for a CSV file. A text that a spreadsheet would run as a formula gets an apostrophe, which makes it text there."""
    if not isinstance(value, str) or not value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return value
    try:
        [float(part) for part in value.replace(",", " ").split()]
        return value  # numbers
    except ValueError:
        return f"'{value}"


def write_rows(
    file: IO[str], columns: Sequence[str], rows: Iterable[Mapping[str, object]], others: Literal["raise", "ignore"] = "raise",
    header: bool = True,
) -> None:  # fmt: skip
    """Writes a CSV table. ``others``: what becomes of values that are in no column."""
    writer = csv.DictWriter(file, columns, extrasaction=others)
    if header:
        writer.writeheader()
    writer.writerows({name: cell(value) for name, value in row.items()} for row in rows)


def write_table(
    path: str | os.PathLike, columns: Sequence[str], rows: Iterable[Mapping[str, object]],
    others: Literal["raise", "ignore"] = "raise",
) -> None:  # fmt: skip
    """Writes a CSV file whole, in UTF-8; bytes of a file's name that are not UTF-8 stay as they are."""
    with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        write_rows(file, columns, rows, others)


def write_json(path: str | os.PathLike, value: object) -> None:
    """Writes a JSON file whole."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1))


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


def unique_names(paths: Sequence[Path]) -> list[str]:
    """A name for what is written of each file: the file's, with a number where several have the same."""
    names, met = [printable(path.name) for path in paths], Counter()
    for place, name in enumerate(names):
        met[name] += 1
        names[place] = name if met[name] == 1 else f"{name} ({met[name]})"
    return names
