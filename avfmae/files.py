"""Files that are there whole or not at all."""

import os
from pathlib import Path


class atomic_write:
    """Gives a temporary path beside ``path``, with ``.part`` behind it; on a clean exit it is synced to disk and takes the place of ``path``."""

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
