"""Predictions of test clips: kept by epoch while a model trains, and written as one table of the epochs that are reported."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from avfmae.data.clip import Clip
from avfmae.files import atomic_write, printable
from avfmae.tasks.interface import Task

ABOUT = ("path", "start", "end", "dataset", "subject", "label")  # of a clip, in the table


def keep(folder: Path, epoch: int, outputs: Mapping[int, np.ndarray]) -> None:
    """Writes the outputs (O,) of an epoch's test clips, by clip id."""
    with atomic_write(folder / f"epoch-{epoch}.npz") as path, open(path, "wb") as file:
        np.savez(file, ids=list(outputs), outputs=np.stack(list(outputs.values())))


def write(task: Task, folder: Path, clips: Sequence[Clip], fold: str, chosen: Mapping[str, Mapping]) -> Path:
    """``folder``.parquet: a row a test clip and way of choosing the epoch. Other epochs stay, for another way of choosing.

    Args:
        chosen: by way of choosing, the fold's report with its ``epoch`` (:func:`avfmae.tasks.results.chosen_epochs`).
    """
    of, rows = {c.id: c for c in clips}, []
    for kind, report in chosen.items():
        with np.load(folder / f"epoch-{report['epoch']}.npz") as kept:
            for number, output in sorted(zip(kept["ids"].tolist(), kept["outputs"], strict=True), key=lambda row: row[0]):
                clip = of[number]
                told = said(task, clip, output)
                about = {name: getattr(clip, name) for name in ABOUT} | {"path": printable(clip.path)}
                rows.append({"fold": fold, "kind": kind, "epoch": report["epoch"], **about, "outputs": output.tolist(), **told})
    path = folder.with_suffix(".parquet")
    with atomic_write(path) as whole:
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), whole)
    return path


def read(path: Path) -> list[dict]:
    """The rows of a table."""
    return pyarrow.parquet.read_table(path).to_pylist()


def clips_of(rows: Sequence[Mapping]) -> list[Clip]:
    """The clips of some rows, numbered by row."""
    return [Clip(i, **{name: row[name] for name in ABOUT}) for i, row in enumerate(rows)]


def said(task: Task, clip: Clip, output: np.ndarray) -> dict[str, str | float]:
    """What a task says of a clip, numbers as such; but a ``prediction`` names a class, also where that is called 1."""
    words = task.prediction(clip, output)
    return {name: text if name == "prediction" else number_or_text(text) for name, text in words.items() if name != "path"}


def number_or_text(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text
