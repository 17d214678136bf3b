"""Named data sets: from a downloaded archive to a manifest with the published labels, folds and splits.

A data set is a file here that holds ``DATASETS``, a tuple of :class:`avfmae.datasets.interface.Dataset`: one, or the variants of
one archive. To add one, write such a file; nothing else lists them.
"""

import importlib
import pkgutil
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from avfmae.datasets.interface import Dataset

OTHERS = {"command", "drawn", "interface", "media", "reading"}  # the files here that are no data set


@cache
def datasets() -> dict[str, "Dataset"]:
    """All data sets by name, in alphabetical order."""
    names = sorted({info.name for info in pkgutil.iter_modules(__path__)} - OTHERS)
    found = [dataset for name in names for dataset in importlib.import_module(f"{__name__}.{name}").DATASETS]
    return {dataset.name: dataset for dataset in sorted(found, key=lambda dataset: dataset.name)}


def find_dataset(name: str) -> "Dataset":
    """Raises ValueError for a name that no file here has."""
    if name not in datasets():
        raise ValueError(f"dataset: got {name!r}, expected one of {', '.join(datasets())}")
    return datasets()[name]
