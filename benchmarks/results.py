"""Rows of results: appended to CSV files that are kept in git, and read from there by plots and the README."""

import csv
from pathlib import Path

from avfmae.files import atomic_write

HERE = Path(__file__).parent
CHECKOUT = HERE.parent if (HERE.parent / "pyproject.toml").exists() else None  # None: installed without its sources
FOLDER = HERE / "results" if CHECKOUT else Path("benchmark-results")


def append(subject: str, rows: list[dict], folder: Path) -> Path:
    """Adds rows to ``folder/subject.csv``; columns that are new to the file are added to it."""
    path = folder / f"{subject}.csv"
    kept = read(subject, folder)
    columns = list(dict.fromkeys(name for row in [*kept, *rows] for name in row))
    with atomic_write(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows([*kept, *({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)])
    return path


def read(subject: str, folder: Path) -> list[dict[str, str]]:
    """All rows of a subject, oldest first; none where there is no file."""
    path = folder / f"{subject}.csv"
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def of_run(subject: str, folder: Path, where: dict[str, str] | None, **wanted: str) -> list[dict[str, str]]:
    """The rows that a run which is gone on with has left: those of its time that have the ``wanted`` values. None where nothing
    is gone on with."""
    if where is None:
        return []
    return [r for r in read(subject, folder) if r["date"] == where["date"] and all(r[k] == v for k, v in wanted.items())]


def latest(rows: list[dict[str, str]], **wanted: str) -> dict[str, list[dict[str, str]]]:
    """By device, the rows of the newest run that has the ``wanted`` values."""
    fitting = [row for row in rows if all(row[k] == v for k, v in wanted.items())]
    newest = {row["device"]: row["date"] for row in fitting}
    return {device: [r for r in fitting if r["device"] == device and r["date"] == date] for device, date in newest.items()}
