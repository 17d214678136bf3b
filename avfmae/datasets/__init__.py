"""Named data sets: from a downloaded archive to a manifest with the published labels, folds and splits.

A data set is a file here that holds ``DATASETS``, a tuple of :class:`avfmae.datasets.interface.Dataset`: one, or the variants of
one archive. To add one, write such a file; nothing else lists them.
"""

import importlib
import pkgutil
from functools import cache
from typing import TYPE_CHECKING

from avfmae.data.clip import dataset_key

if TYPE_CHECKING:
    from avfmae.datasets.interface import Dataset

OTHERS = {"checking", "command", "drawn", "interface", "media", "published", "reading"}  # the files here that are no data set


@cache
def datasets() -> dict[str, "Dataset"]:
    """All data sets by name, in alphabetical order."""
    names = sorted({info.name for info in pkgutil.iter_modules(__path__)} - OTHERS)
    found = [dataset for name in names for dataset in importlib.import_module(f"{__name__}.{name}").DATASETS]
    return {dataset.name: dataset for dataset in sorted(found, key=lambda dataset: dataset.name)}


def find_dataset(name: str) -> "Dataset":
    """The data set of a name, or of the title before its comma, without regard to capitals, spaces and signs: CAS(ME)^3, crema_d.

    Raises ValueError for a name that no file here has.
    """
    every = list(datasets().values())
    known = {dataset_key(one.title.split(",")[0]): one for one in reversed(every)} | {dataset_key(one.name): one for one in every}
    if dataset_key(name) not in known:
        raise ValueError(f"dataset: got {name!r}, expected one of {', '.join(datasets())}")
    return known[dataset_key(name)]
