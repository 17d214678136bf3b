"""The list of clips: a CSV or Parquet file with one row a clip.

Columns: ``path`` (required), ``audio_path`` (sound from another file), ``start`` and ``end`` (seconds into the file),
``label`` (a class name, or numbers separated by spaces or commas for regression), ``split``, ``subject``, ``dataset``,
``face_x, face_y, face_w, face_h`` (pixels). Other columns are kept in the file and ignored here. Relative paths are
relative to the manifest. The manifest, and clips of prepared sets, may lie at any URL that fsspec opens.
"""

import csv
import io
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

MANIFESTS = (".csv", ".parquet", ".txt")  # suffixes
FACE = ("face_x", "face_y", "face_w", "face_h")


@dataclass(frozen=True)
class Clip:
    """One row. ``id`` is its place in the manifest and the key of all its random numbers."""

    id: int
    path: str
    audio_path: str | None = None
    start: float | None = None
    end: float | None = None
    label: str | None = None
    split: str | None = None
    subject: str | None = None
    dataset: str | None = None
    face: tuple[float, float, float, float] | None = None


COLUMNS = tuple(f.name for f in fields(Clip) if f.name not in ("id", "face")) + FACE


def read_manifest(path: str | os.PathLike) -> list[Clip]:
    """Reads a manifest, or a released space-separated list (``.txt``, or ``.csv`` without a header).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a column is missing, a value is no number, or there are no rows; names file and row.
    """
    data, path = _read(path)
    if str(path).endswith(".parquet"):
        import pyarrow.parquet

        try:
            rows = pyarrow.parquet.read_table(io.BytesIO(data)).to_pylist()
        except Exception as error:
            raise ValueError(f"{path}: is no readable Parquet file ({error})") from error
    else:
        try:
            text = data.decode("utf-8-sig", "surrogateescape")  # names of files are bytes
            if "\0" in text:
                raise csv.Error("it holds zero bytes")
            if _is_released_list(text.partition("\n")[0]):
                return read_released_list(path)
            rows = list(csv.DictReader(io.StringIO(text, newline="")))
        except csv.Error as error:
            raise ValueError(f"{path}: is no readable CSV file ({error})") from error
    if not rows:
        raise ValueError(f"{path}: holds no clips")
    if "path" not in rows[0]:
        raise ValueError(f"{path}: column 'path' is missing; it has {', '.join(map(str, rows[0]))}")
    return [_clip(i, row, path) for i, row in enumerate(rows)]


def _read(path: str | os.PathLike) -> tuple[bytes, Path | str]:
    """A manifest's bytes, and its path or URL. A URL that has been a Path has lost a slash, which is put back."""
    url = re.match(r"([a-z][a-z0-9+.-]+(?:::[a-z0-9+.-]+)*):/+(.+)", str(path))
    if url is None:
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path}: no such manifest")
        return Path(path).read_bytes(), Path(path)
    import fsspec

    where = f"{url[1]}://{url[2]}"
    try:
        with fsspec.open(where) as file:
            return file.read(), where
    except (OSError, ImportError, ValueError) as error:
        raise FileNotFoundError(f"{where}: cannot be opened ({type(error).__name__}: {error})") from error


def _clip(i: int, row: dict, manifest: Path | str) -> Clip:
    row = {k: None if v is None or str(v).strip() == "" else str(v).strip() for k, v in row.items() if k is not None}

    def number(column: str) -> float | None:
        value = row.get(column)
        try:
            return None if value is None else float(value)
        except ValueError:
            raise ValueError(f"{manifest}, row {i + 1}: {column} is {value!r}, expected a number") from None

    def resolve(column: str) -> str | None:
        value = row.get(column)
        if value is None or "://" in value:
            return value
        return f"{manifest.rpartition('/')[0]}/{value}" if isinstance(manifest, str) else str(manifest.parent / value)

    if row["path"] is None:
        raise ValueError(f"{manifest}, row {i + 1}: path is empty")
    face = tuple(number(c) for c in FACE)
    text = {c: row.get(c) for c in ("label", "split", "subject", "dataset")}
    return Clip(i, resolve("path"), resolve("audio_path"), number("start"), number("end"),
                face=None if None in face else face, **text)  # fmt: skip


def write_manifest(path: str | os.PathLike, clips: Iterable[Clip]) -> None:
    """Writes clips as CSV (or Parquet, by the suffix); paths become relative to the file where they lie below it."""
    path, rows = Path(path), []
    for clip in clips:
        row = {c: getattr(clip, c) for c in COLUMNS if c not in FACE}
        row |= dict(zip(FACE, clip.face or [None] * 4, strict=True))
        for c in ("path", "audio_path"):
            if row[c] and Path(row[c]).is_relative_to(path.parent):
                row[c] = str(Path(row[c]).relative_to(path.parent))
        rows.append(row)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        import pyarrow.parquet

        table = pyarrow.table({c: [row[c] for row in rows] for c in COLUMNS})
        pyarrow.parquet.write_table(table, path)
        return
    with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def _is_released_list(line: str) -> bool:
    return "," not in line and len(line.split()) >= 2


def read_released_list(path: str | os.PathLike) -> list[Clip]:
    """A list of the released code: no header, fields separated by spaces.

    ``<video> 0`` (pre-training), ``<video or frame folder> <wav> <label>``, ``<frame folder> <label>``, or three
    numbers in place of the label. The 0 of a pre-training list is kept as a label; pre-training ignores labels.
    """
    clips = []
    for i, line in enumerate(Path(path).read_text(encoding="utf-8", errors="surrogateescape").splitlines()):
        parts = line.split()
        if not parts:
            continue
        audio = parts[1] if len(parts) > 2 and not _is_number(parts[1]) else None
        label = parts[2:] if audio else parts[1:]
        if not label:
            raise ValueError(f"{path}, line {i + 1}: got {line!r}, expected <video> [<wav>] <label>")
        base = Path(path).parent
        clips.append(Clip(len(clips), str(base / parts[0]), str(base / audio) if audio else None, label=" ".join(label)))
    if not clips:
        raise ValueError(f"{path}: holds no clips")
    return clips


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
