"""Which sources compiled modules were built of. The build runs this file by itself, so it imports nothing of the package."""

import hashlib
from pathlib import Path


def digest(csrc: Path) -> str:
    """Of the names and contents of all sources below a folder."""
    found = hashlib.sha256()
    for path in sorted(p for p in csrc.rglob("*.*") if p.suffix != ".md"):
        found.update(path.relative_to(csrc).as_posix().encode() + b"\0" + path.read_bytes())
    return found.hexdigest()
