"""Files of ``torch.save`` changed from within, and pickles put together from op codes."""

import zipfile
from pathlib import Path


def rewrite(path: Path, records: dict[str, bytes | None]) -> None:
    """Puts other records into a file of ``torch.save``; None takes one out. Names are without the archive's own."""
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    root = next(iter(contents)).partition("/")[0]
    contents |= {f"{root}/{name}": data for name, data in records.items()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in contents.items():
            if data is not None:
                archive.writestr(name, data)


def record(path: Path, name: str) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return next(archive.read(n) for n in archive.namelist() if n.partition("/")[2] == name)


def named(module: str, name: str) -> bytes:
    """Pushes what a module has under a name."""
    return f"c{module}\n{name}\n".encode()


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + len(data).to_bytes(4, "little") + data


def data(value: bytes) -> bytes:
    return b"B" + len(value).to_bytes(4, "little") + value


def several(*values: bytes) -> bytes:
    """Pushes a tuple."""
    return b"(" + b"".join(values) + b"t"


def call(function: bytes, *args: bytes) -> bytes:
    return function + several(*args) + b"R"
