"""The list of clips: a CSV or Parquet file with one row a clip.

Columns: ``path`` (required), ``audio_path`` (sound from another file), ``start`` and ``end`` (seconds into the file),
``label`` (a class name, or numbers separated by spaces or commas for regression), ``split``, ``fold`` (the one that tests the
clip), ``subject``, ``dataset``, ``face_x, face_y, face_w, face_h`` (pixels). Other columns are kept in the file, where
:func:`read_columns` finds them. Relative paths are relative to the manifest. The manifest, and clips of prepared sets, may lie
at any URL that fsspec opens.

CSV is UTF-8 with commas, semicolons or tabs. Spaces around values are no part of them; an empty cell and NaN are no value.
"""

import csv
import io
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from avfmae.data.clip import Clip
from avfmae.data.table import COLUMNS, FACE, NUMBERS, SHARED, TYPES, ZERO, ClipTable, array_of, batches_of
from avfmae.files import atomic_write, write_table

__all__ = ["COLUMNS", "FACE", "MANIFESTS", "read_columns", "read_manifest", "read_released_list", "write_manifest"]

MANIFESTS = (".csv", ".parquet", ".txt", ".tsv")  # suffixes
NOTHING = array_of([b"", b"nan", b"NaN", b"NAN"], pa.string())
OWN = ("*",)  # in place of names: all columns that clips do not have
BLOCK = 1 << 23  # bytes that are read at a time


def read_manifest(path: str | os.PathLike) -> ClipTable:
    """Reads a manifest, or a released space-separated list (``.txt``, or ``.csv`` without a header).

    A large one is read once a machine: its table is kept in the user's cache folder, until the file changes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a column is missing, a value is no number, or there are no rows; names file and row.
    """
    if (where := _url(path)) is not None:
        with _opened(where) as file:
            return ClipTable(pa.Table.from_batches(_batches(file, where)), where.rpartition("/")[0])
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such manifest")

    def batches() -> Iterator[pa.RecordBatch]:
        with _opened(str(path)) as file:
            yield from _batches(file, str(path))

    base, stat = os.path.dirname(path), os.stat(path)
    if stat.st_size < SHARED:
        return ClipTable(pa.Table.from_batches(batches()), base)
    key = f"4 {os.path.realpath(path)} {stat.st_ino} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"
    return ClipTable.cached(key, base, batches)


def read_columns(path: str | os.PathLike, names: Sequence[str] | None = None) -> dict[str, list[str | None]]:
    """Any columns of a manifest: the text of each row, None where it has none.

    Args:
        names: None: all that clips do not have, the user's own.

    Raises:
        FileNotFoundError: there is no such file. ValueError: a column is missing; names it.
    """
    where = _url(path) or str(path)
    found: dict[str, list[str | None]] = {name: [] for name in names or ()}
    with _opened(where) as file:
        for batch in _rows(file, where, OWN if names is None else names):
            for name in batch.schema.names:
                values = _text_of(batch[name]).view(pa.binary()).to_pylist()
                found.setdefault(name, []).extend([value and value.decode("utf-8", "replace") for value in values])
    return found


def _url(path: str | os.PathLike) -> str | None:
    """The path as a URL, if it is one; one that has been a Path has lost a slash, which is put back."""
    match = re.match(r"([a-z][a-z0-9+.-]+(?:::[a-z0-9+.-]+)*):/+(.+)", str(path))
    return match and f"{match[1]}://{match[2]}"


@contextmanager
def _opened(where: str) -> Iterator[IO[bytes]]:
    if "://" not in where:
        with open(where, "rb") as file:
            yield file
        return
    import fsspec

    try:
        with fsspec.open(where) as file:
            yield file
    except (OSError, ImportError) as error:
        raise FileNotFoundError(f"{where}: cannot be opened ({type(error).__name__}: {error})") from error


def _batches(file: IO[bytes], path: str) -> Iterator[pa.RecordBatch]:
    """The table of a manifest, part after part."""
    read = 0
    for batch in _rows(file, path, None):
        if len(batch):
            yield batch if "id" in batch.schema.names else _checked(batch, read, path)  # a released list has numbers
            read += len(batch)
    if not read:
        raise ValueError(f"{path}: holds no clips")


def _rows(file: IO[bytes], path: str, wanted: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
    """The columns of these names, or those that clips have, as text."""
    kind = "Parquet" if path.endswith(".parquet") else "CSV"
    try:
        yield from (_parquet if kind == "Parquet" else _csv)(file, path, wanted)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: is no readable {kind} file ({error})") from error


def _parquet(file: IO[bytes], path: str, wanted: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
    parquet = pa.parquet.ParquetFile(file)
    used = _used([c.name for c in parquet.schema_arrow if wanted is not OWN or not pa.types.is_nested(c.type)], path, wanted)
    for batch in parquet.iter_batches(columns=used):
        yield pa.record_batch([column.cast(pa.string(), safe=False) for column in batch.columns], names=batch.schema.names)


def _csv(file: IO[bytes], path: str, wanted: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
    head = file.read(1 << 16)
    if b"\0" in head:
        raise ValueError(f"{path}: is no readable CSV file (it holds zero bytes; expected UTF-8, not UTF-16)")
    lines = head.decode("utf-8-sig", "surrogateescape").splitlines() or [""]
    says = re.fullmatch(r'"?sep=(.)"?[,;\t]*', lines[0])  # as some spreadsheets write before the header
    line = lines[1] if says and len(lines) > 1 else lines[0]
    separator = says[1] if says else max(",;\t", key=line.count)
    names = [name.strip() for name in next(csv.reader([line], delimiter=separator, skipinitialspace=True), [])]
    file.seek(0)
    if re.search(f'(^|{separator}) +"'.encode(), head, re.MULTILINE):
        file = _without_spaces(file, separator, path)
    if "path" not in names and separator not in line and len(line.split()) >= 2:
        if "path" in line.split():
            raise ValueError(f"{path}: its header is separated by spaces ({line[:80]!r}), expected commas, semicolons or tabs")
        if wanted is OWN:
            return
        if wanted is not None:
            raise ValueError(f"{path}: is a list without columns, expected one named {wanted[0]!r}")
        yield from batches_of(_released(file, path))
        return
    if not line:
        return
    if not (used := _used(names, path, wanted)):
        return
    reader = pa.csv.open_csv(
        file,
        pa.csv.ReadOptions(block_size=BLOCK, column_names=names, skip_rows=2 if says else 1, use_threads=False),
        pa.csv.ParseOptions(delimiter=separator, newlines_in_values=True),
        pa.csv.ConvertOptions(include_columns=used, column_types=dict.fromkeys(used, pa.string()), check_utf8=False),
    )
    for batch in reader:
        if separator == ";":  # where decimals have commas
            columns = [pc.replace_substring(batch[c], ",", ".") if c in NUMBERS else batch[c] for c in used]
            batch = pa.record_batch(columns, names=used)
        yield batch


def _without_spaces(file: IO[bytes], separator: str, path: str) -> IO[bytes]:
    """The table without spaces before quotes: Arrow's reader takes a quote that follows a space for a part of the text."""
    text, out = io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline=""), io.StringIO(newline="")
    try:
        csv.writer(out, delimiter=separator).writerows(csv.reader(text, delimiter=separator, skipinitialspace=True))
    except csv.Error as error:
        raise ValueError(f"{path}: is no readable CSV file ({error})") from error
    finally:
        text.detach()
    return io.BytesIO(out.getvalue().encode("utf-8", "surrogateescape"))


def _used(names: list[str], path: str, wanted: Sequence[str] | None) -> list[str]:
    if wanted is OWN:
        return [name for name in names if name and name not in COLUMNS and names.count(name) == 1]
    used = [c for c in wanted or COLUMNS if c in names]
    if missing := next((c for c in wanted or ("path",) if c not in names), None):
        raise ValueError(f"{path}: column {missing!r} is missing; it has {', '.join(names)}")
    if wanted is None and any(c in names for c in FACE) and (missing := next((c for c in FACE if c not in names), None)):
        raise ValueError(f"{path}: column {missing!r} of the face's box is missing; it has {', '.join(names)}")
    if twice := next((c for c in used if names.count(c) > 1), None):
        raise ValueError(f"{path}: has the column {twice!r} {names.count(twice)} times, expected once")
    return used


def _checked(batch: pa.RecordBatch, read: int, path: str) -> pa.RecordBatch:
    """Text as it was written, as the table has it. ``read``: rows before these."""
    columns = {"id": array_of(range(read, read + len(batch)), pa.int64())}
    for name in batch.schema.names:
        text = _text_of(batch[name])
        if name not in NUMBERS:
            columns[name] = text.view(pa.binary())
            continue
        try:
            columns[name] = text.cast(pa.float64())
        except pa.ArrowInvalid:
            row = next(i for i in range(len(text)) if not _casts(text[i : i + 1]))
            wrong = text.view(pa.binary())[row].as_py().decode("utf-8", "replace")
            raise ValueError(f"{path}, row {read + row + 1}: {name} is {wrong!r}, expected a number") from None
    if columns["path"].null_count:
        raise ValueError(f"{path}, row {read + pc.index(columns['path'].is_null(), True).as_py() + 1}: path is empty")
    wrong = {}  # what is wrong -> by row, whether it is
    for name in filter(columns.__contains__, NUMBERS):
        wrong[f"{name} is no finite number"] = pc.invert(pc.is_finite(columns[name]))
    if "start" in columns:
        wrong["start is below 0"] = pc.less(columns["start"], ZERO)
    if "end" in columns:
        wrong["end is not above 0"] = pc.less_equal(columns["end"], ZERO)
    if {"start", "end"} <= columns.keys():
        wrong["end is not after start"] = pc.less_equal(columns["end"], columns["start"])
    if FACE[0] in columns:
        given = [pc.is_valid(columns[c]) for c in FACE]
        wrong["the face's box is not whole"] = pc.and_not(reduce(pc.or_, given), reduce(pc.and_, given))
        for name in FACE[2:]:
            wrong[f"{name} is not above 0"] = pc.less_equal(columns[name], ZERO)
    for what, rows in wrong.items():
        if pc.any(rows).as_py():
            raise ValueError(f"{path}, row {read + pc.index(rows, True).as_py() + 1}: {what}")
    return pa.record_batch(list(columns.values()), schema=pa.schema([(c, TYPES[c]) for c in columns]))


def _casts(text: pa.Array) -> bool:
    try:
        return text.cast(pa.float64()) is not None
    except pa.ArrowInvalid:
        return False


def _text_of(column: pa.Array) -> pa.Array:
    """Without spaces and quotes around it; None where there is nothing, or NaN."""
    text = pc.ascii_trim_whitespace(column)
    if pc.any(pc.starts_with(text, '"')).as_py():  # a quote after a space is none to the reader of CSV
        text = pc.ascii_trim(text, '"')
    text = pc.replace_substring_regex(text, "^'([-=+@])", r"\1")  # as files.cell() writes it
    return pc.if_else(pc.is_in(text, NOTHING), pa.NULL, text)


def write_manifest(path: str | os.PathLike, clips: Iterable[Clip]) -> None:
    """Writes clips as CSV (or Parquet, by the suffix); paths become relative to the file where they lie below it."""
    path = Path(path)

    def relative(place: str | None) -> str | None:
        return str(Path(place).relative_to(path.parent)) if place and Path(place).is_relative_to(path.parent) else place

    moved = (replace(clip, path=relative(clip.path), audio_path=relative(clip.audio_path)) for clip in clips)
    if path.suffix != ".parquet":
        write_table(path, COLUMNS, map(_row, moved))
        return
    with atomic_write(path) as whole:
        pyarrow.parquet.write_table(pa.Table.from_batches(map(_text, batches_of(moved))).drop_columns("id"), whole)


def _row(clip: Clip) -> dict[str, object]:
    face = dict(zip(FACE, clip.face or [None] * 4, strict=True))
    return {c: face[c] if c in FACE else getattr(clip, c) for c in COLUMNS}


def _text(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch with strings for bytes; where a name is no UTF-8 it fits no string, and its column stays."""
    columns = batch.columns
    for i, column in enumerate(columns):
        with suppress(pa.ArrowInvalid):
            columns[i] = column.cast(pa.string()) if column.type == pa.binary() else column
    return pa.record_batch(columns, names=batch.schema.names)


def read_released_list(path: str | os.PathLike) -> ClipTable:
    """A list of the released code: no header, fields separated by spaces.

    ``<video> 0`` (pre-training), ``<video or frame folder> <wav> <label>``, ``<frame folder> <label>``, or three
    numbers in place of the label. The 0 of a pre-training list is kept as a label; pre-training ignores labels.
    """
    with open(path, "rb") as file:
        clips = ClipTable(pa.Table.from_batches(batches_of(_released(file, str(path))), pa.schema(TYPES)), os.path.dirname(path))
    if not len(clips):
        raise ValueError(f"{path}: holds no clips")
    return clips


def _released(file: Iterable[bytes], path: str) -> Iterator[Clip]:
    count = 0
    for i, line in enumerate(file):
        parts = line.decode("utf-8-sig", "surrogateescape").split()
        if not parts:
            continue
        audio = parts[1] if len(parts) > 2 and not _is_number(parts[1]) else None
        label = parts[2:] if audio else parts[1:]
        if not label:
            raise ValueError(f"{path}, line {i + 1}: got {parts[0]!r}, expected <video> [<wav>] <label>")
        yield Clip(count, parts[0], audio, label=" ".join(label))
        count += 1


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def is_manifest(sources: Sequence[Path]) -> bool:
    return len(sources) == 1 and sources[0].suffix.lower() in MANIFESTS


def listed(sources: Sequence[Path]) -> Sequence[Clip]:
    """A manifest's clips, or one a video."""
    return read_manifest(sources[0]) if is_manifest(sources) else [Clip(i, str(path)) for i, path in enumerate(sources)]
