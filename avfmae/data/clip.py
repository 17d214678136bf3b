"""A row of a manifest."""

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
