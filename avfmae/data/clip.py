"""A row of a manifest."""

import unicodedata
from dataclasses import dataclass


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
    fold: str | None = None
    subject: str | None = None
    dataset: str | None = None
    face: tuple[float, float, float, float] | None = None


def dataset_key(name: str) -> str:
    """The same for all ways to write a data set's name: CREMA-D, crema_d."""
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKC", name).casefold()))
