"""The clips of a run as an Arrow table, from which a :class:`Clip` is made when one is asked for.

A large table lies in a file that every process maps: the ranks of a machine and their workers share its pages, and a process is
sent the file's name.
"""

import hashlib
import os
import tempfile
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from avfmae.data.clip import Clip
from avfmae.files import atomic_write, locked

FACE = ("face_x", "face_y", "face_w", "face_h")
NUMBERS = ("start", "end", *FACE)
SHARED = 1 << 22  # bytes; a larger table is shared by file, and not sent
ROWS = 1 << 16  # of a batch
UNUSED = 30 * 86_400  # seconds after which a file of the cache is removed


COLUMNS = tuple(f.name for f in fields(Clip) if f.name not in ("id", "face")) + FACE
TYPES = {"id": pa.int64(), **{c: pa.float64() if c in NUMBERS else pa.binary() for c in COLUMNS}}  # names of files are bytes


def array_of(values: Sequence, kind: pa.DataType) -> pa.Array:
    """An array of strings, bytes or numbers and None, made of buffers: ``pa.array`` imports pandas, 30 MB a process.

    So do ``pa.scalar`` and ``to_numpy`` where it is installed; :func:`numbers` is in the place of the latter.
    """
    valid = np.packbits([v is not None for v in values], bitorder="little")
    if kind in (pa.int64(), pa.float64()):
        parts = [np.array([v or 0 for v in values], "int64" if kind == pa.int64() else "float64")]
    else:
        filled = [v or b"" for v in values]
        parts = [np.cumsum([0, *map(len, filled)], dtype=np.int32), b"".join(filled)]
    return pa.Array.from_buffers(kind, len(values), list(map(pa.py_buffer, (valid, *parts))))


def numbers(values: pa.Array) -> np.ndarray:
    """The numbers of a column without nulls, on the same memory; truth values as 0 and 1."""
    return np.from_dlpack(values.cast(pa.uint8()) if values.type == pa.bool_() else values)


EMPTY, ZERO = array_of([b""], pa.binary())[0], array_of([0], pa.int64())[0]


class ClipTable(Sequence[Clip]):
    """Clips by their place in the list. It equals any sequence of the same clips.

    Args:
        table: columns of ``TYPES``, of which ``id`` and ``path`` must be there.
        base: the folder or URL that relative paths are relative to.
        file: where the table is mapped from; None: it is in memory.
    """

    def __init__(self, table: pa.Table, base: str = "", file: str | None = None):
        self.base, self.file = base, file
        self.batches, self.columns = table.to_batches(), table.column_names
        self.starts = np.cumsum([0] + [len(batch) for batch in self.batches])

    @classmethod
    def of(cls, clips: Iterable[Clip]) -> "ClipTable":
        """The table of a list of clips."""
        return clips if isinstance(clips, cls) else cls(pa.Table.from_batches(batches_of(clips), schema=pa.schema(TYPES)))

    @classmethod
    def mapped(cls, file: str, base: str = "") -> "ClipTable":
        with suppress(OSError):
            os.utime(file)
        return cls(pa.ipc.open_file(pa.memory_map(file)).read_all(), base, file)

    @classmethod
    def cached(cls, key: str, base: str, make: Callable[[], Iterator[pa.RecordBatch]]) -> "ClipTable":
        """The table that ``make`` gives, made by the first process of the machine that asks for this key, and mapped by all."""
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        file = root / "avfmae" / "manifests" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.arrow"
        try:
            with locked(file.with_suffix(".lock")):
                if not file.exists():
                    for old in file.parent.glob("*.arrow"):
                        if time.time() - old.stat().st_mtime > UNUSED:
                            old.unlink(missing_ok=True)
                    with atomic_write(file) as temporary:
                        _write(temporary, make())
            return cls.mapped(str(file), base)
        except OSError:  # the folder cannot be written to, or is full
            return cls(pa.Table.from_batches(make()), base)

    def __reduce__(self):
        if self.file is None and sum(batch.nbytes for batch in self.batches) > SHARED:
            number, self.file = tempfile.mkstemp(".arrow", "avfmae-")
            os.close(number)
            weakref.finalize(self, os.unlink, self.file)
            _write(self.file, self.batches)
        if self.file is not None:
            return ClipTable.mapped, (self.file, self.base)
        return ClipTable, (pa.Table.from_batches(self.batches), self.base)

    def __len__(self) -> int:
        return int(self.starts[-1])

    @overload
    def __getitem__(self, place: int) -> Clip: ...
    @overload
    def __getitem__(self, place: slice) -> list[Clip]: ...
    def __getitem__(self, place):
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        place = range(len(self))[place]
        number = int(np.searchsorted(self.starts, place, "right")) - 1
        return next(self._clips(self.batches[number].slice(place - int(self.starts[number]), 1)))

    def __iter__(self) -> Iterator[Clip]:
        for batch in self.batches:
            for start in range(0, len(batch), 1024):
                yield from self._clips(batch.slice(start, 1024))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    def _clips(self, batch: pa.RecordBatch) -> Iterator[Clip]:
        values = batch.to_pydict()
        for i in range(len(batch)):
            row = {c: v[i].decode("utf-8", "surrogateescape") if isinstance(v[i], bytes) else v[i] for c, v in values.items()}
            face = tuple(row.pop(c, None) for c in FACE)
            for c in ("path", "audio_path"):
                if row.get(c) and "://" not in row[c]:
                    row[c] = os.path.join(self.base, row[c])
            yield Clip(**row, face=None if None in face else face)

    def folders(self) -> tuple[list[str], np.ndarray]:
        """The first clip's path of every folder, and (clips,) the number of each clip's folder."""
        places: dict[str, int] = {}
        firsts, found = [], []
        for batch, start in zip(self.batches, self.starts.tolist(), strict=False):
            parts = pc.split_pattern(  # pyright: ignore[reportAttributeAccessIssue]  (made when pyarrow is imported, as the next)
                batch["path"].view(pa.string()), "/", max_splits=1, reverse=True
            )
            folder = pc.list_element(parts, ZERO)  # pyright: ignore[reportAttributeAccessIssue]
            coded = folder.view(pa.binary()).dictionary_encode()
            indices, names = numbers(coded.indices), coded.dictionary.to_pylist()
            first = np.unique(indices, return_index=True)[1]
            for name, place in zip(names, first.tolist(), strict=True):
                if name not in places:
                    places[name] = len(firsts)
                    firsts.append(self[start + place].path)
            found.append(np.array([places[name] for name in names], np.int32)[indices])
        pa.default_memory_pool().release_unused()
        return firsts, np.concatenate(found)

    def digest(self, columns: Iterable[str]) -> str:
        """Of the columns' values, paths as they are in the manifest."""
        total = hashlib.sha256()
        for name in columns:
            sizes, content = hashlib.sha256(), hashlib.sha256()
            for batch in self.batches if name in self.columns else ():
                values = batch[name]
                nulls = numbers(values.is_null())
                sizes.update(nulls.tobytes())
                if name in NUMBERS:
                    found = np.frombuffer(values.buffers()[1], np.float64)[values.offset :][: len(values)]
                    content.update(np.where(nulls, 0, found).tobytes())
                else:
                    values = values.fill_null(EMPTY)
                    ends = np.frombuffer(values.buffers()[1], np.int32)[values.offset :][: len(values) + 1]
                    sizes.update(np.diff(ends).tobytes())
                    content.update(memoryview(values.buffers()[2] or b"")[ends[0] : ends[-1]])
            total.update(name.encode() + sizes.digest() + content.digest())
        return total.hexdigest()[:16]


def batches_of(clips: Iterable[Clip]) -> Iterator[pa.RecordBatch]:
    """Clips as batches of a table."""
    clips = iter(clips)
    while some := list(islice(clips, ROWS)):
        columns: dict[str, list] = {c: [getattr(clip, c) for clip in some] for c in TYPES if c not in FACE}
        for c in COLUMNS:
            if c not in NUMBERS:
                columns[c] = [None if v is None else v.encode("utf-8", "surrogateescape") for v in columns[c]]
        columns.update(zip(FACE, map(list, zip(*(clip.face or (None,) * 4 for clip in some), strict=True)), strict=True))
        yield pa.record_batch([array_of(columns[c], TYPES[c]) for c in TYPES], names=[*TYPES])


def _write(path: str | os.PathLike, batches: Iterable[pa.RecordBatch]) -> None:
    batches = iter(batches)
    first = next(batches)
    with pa.ipc.new_file(str(path), first.schema) as file:
        file.write(first)
        for batch in batches:
            file.write(batch)
