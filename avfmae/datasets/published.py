"""Published numbers of the named data sets, as papers print them: ``published.csv``, each row with its source."""

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Published:
    """A method's numbers on one data set.

    Attributes:
        method: with its size in brackets, where there are several.
        modalities: A, V, A+V, with T for text. parameters: in millions; None: not told.
        metrics: by the names that results have here, in the paper's unit: percent.
        source: paper and table.
    """

    method: str
    modalities: str
    parameters: int | None
    metrics: dict[str, float]
    source: str


@cache
def published(dataset: str) -> list[Published]:
    """The numbers on a data set, in the order of the paper; none for a set without."""
    with open(Path(__file__).with_suffix(".csv"), newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["dataset"] == dataset]
    found = []
    for row in rows:
        pairs = (pair.split("=") for pair in row["metrics"].split())
        parameters = int(row["parameters"]) if row["parameters"] else None
        metrics = {name: float(value) for name, value in pairs}
        found.append(Published(row["method"], row["modalities"], parameters, metrics, row["source"]))
    return found
