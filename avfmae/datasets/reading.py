"""What readers of data sets share: text files, tables, spreadsheets, fold files, and where a clip's media lie."""

import csv
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from avfmae.data.sources import find_files
from avfmae.data.sources.frames import FrameFolder
from avfmae.data.sources.probing import NOMINAL_FPS
from avfmae.datasets.interface import NOT_IN_FILE, Options
from avfmae.extras import need


def first_existing(root: Path, *places: str) -> Path:
    """The first of several places below a folder that is there; a place is a path or a pattern. A sheet may be a CSV file.

    Raises:
        FileNotFoundError: none is; names them.
    """
    for pattern in (either for place in places for either in (place, place.replace(".xlsx", ".csv"))):
        if found := sorted(root.glob(pattern)):
            return found[0]
    raise FileNotFoundError(f"{root}: lacks {' or '.join(places)}")


def lines(path: Path) -> Iterator[str]:
    """The lines of a text file that are not empty, without spaces around them; in UTF-8, or as Windows writes text.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such annotation")
    content = path.read_bytes()
    encoding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        text = content.decode("cp1252", errors="replace")
    yield from filter(None, map(str.strip, text.splitlines()))


def table(path: Path, *columns: str) -> list[dict[str, str]]:
    """The rows of a CSV file or spreadsheet below the first row that names all of ``columns``, as text; other columns too.

    Rows with one cell of several are footnotes, and left out. Names are compared without spaces and capitals, as the sheets of
    one data set differ in these; ``columns`` are the keys.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no row names the columns.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such annotation")
    wanted = {_plain(column): column for column in columns}
    rows = iter(_sheet(path) if path.suffix.lower() == ".xlsx" else csv.reader(lines(path)))
    for row in rows:
        names = [wanted.get(_plain(cell), cell) for cell in row]
        if set(columns) <= set(names):
            found = (dict(zip(names, values, strict=False)) for values in rows)
            return [row for row in found if sum(bool(row.get(column)) for column in columns) >= min(2, len(columns) - 1)]
    raise ValueError(f"{path}: has no row with the column names {', '.join(columns)}")


def _plain(name: str) -> str:
    return "".join(name.lower().split())


def _sheet(path: Path) -> Iterator[list[str]]:
    """The rows of all sheets of a workbook; whole numbers without the fraction that spreadsheets give them."""
    book = need("openpyxl", "datasets", f"{path}:").load_workbook(path, read_only=True, data_only=True)
    for sheet in book.worksheets:
        for row in sheet.iter_rows(values_only=True):
            cells = (int(value) if isinstance(value, float) and value.is_integer() else value for value in row)
            yield ["" if value is None else str(value).strip() for value in cells]


def pairs(path: Path) -> Iterator[tuple[str, str]]:
    """(clip, label) of a file of lines ``clip label``; a clip's suffix is taken off."""
    for line in lines(path):
        clip, _, label = line.partition(" ")
        if not label.strip():
            raise ValueError(f"{path}: got the line {line!r}, expected <clip> <label>")
        yield os.path.splitext(clip)[0], label.strip()


def official_folds(
    files: Sequence[tuple[Path, Path]], read: Callable[[Path], Iterable[tuple[str, str]]] = pairs
) -> list[tuple[str, str, str]]:
    """(clip, label, fold) from the train and test files of each fold, in the order of the clips' names.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: a fold's files share a clip, two folds test one clip, a clip is never tested, or its labels differ.
    """
    tested_in: dict[str, str] = {}
    labels: dict[str, str] = {}
    for number, (train, test) in enumerate(files, 1):
        trained, tested = dict(read(train)), dict(read(test))
        if shared := sorted(trained.keys() & tested):
            raise ValueError(f"{test}: {len(shared)} clips are in {train} too ({shared[0]})")
        for clip, label in (trained | tested).items():
            if labels.setdefault(clip, label) != label:
                raise ValueError(f"{test}: {clip} is {label!r} in this fold and {labels[clip]!r} in another")
        for clip in tested:
            if clip in tested_in:
                raise ValueError(f"{test}: {clip} is tested in fold {tested_in[clip]} too")
            tested_in[clip] = str(number)
    if never := sorted(labels.keys() - tested_in):
        raise ValueError(f"{files[0][1].parent}: {len(never)} clips are tested in no fold ({never[0]})")
    return [(clip, labels[clip], tested_in[clip]) for clip in sorted(tested_in)]


def one_of(root: Path, *places: str) -> str:
    """The first of several paths below a folder that is there; where none is, the first whose folder is, or the last."""
    paths = [root / place for place in places]
    return str(([p for p in paths if p.exists()] or [p for p in paths if p.parent.exists()] or paths[-1:])[0])


def videos_by_stem(root: Path) -> dict[str, str]:
    """Videos below a folder by name without suffix."""
    return {os.path.splitext(os.path.basename(path))[0]: path for path in find_files(root)[0]}


def expression(folder: str, onset: str, offset: str, options: Options, whole: bool) -> tuple[float | None, float | None]:
    """Start and end in seconds, on the clock of a folder of frames, of what a sheet gives as numbers of frames.

    Args:
        folder: of images; the last number in an image's name is the frame's.
        whole: the folder holds nothing but the expression, so that all of it is taken where the sheet's numbers are wrong.

    Returns:
        Both None where all of the folder is the clip, or where it is not there.
    """
    if not os.path.isdir(folder):
        return None, None
    numbers = [int((re.findall(r"\d+", file.stem) or ["-1"])[-1]) for file in FrameFolder(folder).files]
    if onset in (found := [*map(str, numbers)]) and offset in found and found.index(onset) < found.index(offset):
        return found.index(onset) / NOMINAL_FPS, (found.index(offset) + 1) / NOMINAL_FPS
    held = f"holds frames {min(numbers)} to {max(numbers)}" if numbers else "holds no frames"
    options.notes.append((folder, f"the sheet says frames {onset} to {offset}, the folder {held}"))
    return (None, None) if whole else NOT_IN_FILE
