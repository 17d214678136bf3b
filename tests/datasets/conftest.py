"""Miniatures of data sets' trees: real names and annotations, and one tiny clip, sound and picture for all."""

import os
import tomllib
from pathlib import Path

import numpy as np
import openpyxl
import pytest
from media_files import RATE, write_wav
from PIL import Image

from avfmae.data.manifest import read_manifest
from avfmae.datasets import find_dataset
from avfmae.datasets.command import dataset
from avfmae.datasets.drawn import Identity, encode, face
from avfmae.datasets.interface import Options
from avfmae.options import DatasetConfig

POSE = {"x": 0.0, "y": 0.0, "tilt": 0.0, "scale": 1.0, "light": 1.0, "gaze": 0.0, "lids": 1.0}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> dict[str, Path]:
    """Suffix -> a file of a drawn face or a hum."""
    folder = tmp_path_factory.mktemp("tiny")
    picture = face(Identity.draw(np.random.default_rng(3)), POSE, (0.1, 0.03, 0.03, 0.0, 0.0), 0.0)
    frames, hum = np.repeat(np.asarray(picture)[None], 12, 0), 0.3 * np.sin(np.arange(RATE // 2) / 5)
    for suffix in (".mp4", ".avi", ".flv"):
        encode(folder / f"tiny{suffix}", frames, hum, rate=RATE)
    write_wav(folder / "tiny.wav", hum, RATE)
    for suffix in (".jpg", ".png", ".bmp"):
        picture.save(folder / f"tiny{suffix}")
    Image.new("RGB", (96, 96), "gray").save(folder / "faceless.jpg")
    return {path.suffix: path for path in sorted(folder.glob("tiny.*"))} | {".m4a": folder / "tiny.mp4"}


class Tree:
    """A data set's folder, as it is unpacked."""

    def __init__(self, root: Path, tiny: dict[str, Path]):
        self.root, self.tiny = root, tiny

    def media(self, *paths: str) -> None:
        """Puts a tiny file at each path, by its suffix."""
        for path in map(self.place, paths):
            os.link(self.tiny[path.suffix], path)

    def images(self, folder: str, first: int, last: int, name: str = "{}.jpg") -> None:
        self.media(*(f"{folder}/{name.format(number)}" for number in range(first, last + 1)))

    def text(self, path: str, *lines: str) -> None:
        self.place(path).write_text("".join(f"{line}\n" for line in lines))

    def sheet(self, path: str, *rows: tuple) -> None:
        book = openpyxl.Workbook()
        for row in rows:
            book.active.append(row)
        book.save(self.place(path))

    def place(self, path: str) -> Path:
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        return place

    def write(self, name: str, **options) -> Path:
        """Has the command write the manifest beside the folder."""
        out = self.root.parent / "manifest.csv"
        dataset(DatasetConfig(name, self.root, out, **options))
        return out

    def manifest(self, name: str, *columns: str, **options) -> list[tuple]:
        """The rows of the manifest: path below the folder, label, and the columns named; settings stay in ``self.settings``."""
        out = self.write(name, **options)
        settings = out.with_suffix(".toml")
        self.settings = tomllib.loads(settings.read_text()) if settings.exists() else None
        faults = out.with_suffix(".faults.csv").read_text().splitlines()[1:]
        self.faults = [line.removeprefix(f"{self.root}/") for line in faults]
        rows = []
        for clip in read_manifest(out):
            assert clip.dataset == find_dataset(name).corpus or name == "megc2019"
            values = [getattr(clip, column) for column in columns]
            rows.append((self.below(clip.path), clip.label, *map(self.below, values)))
        return rows

    def below(self, value: object) -> object:
        """A path as it is below the folder; other values as they are."""
        return value.removeprefix(f"{self.root}/") if isinstance(value, str) else value

    def annotated(self, name: str, **options):
        return find_dataset(name).annotated(self.root, Options(**options))


@pytest.fixture
def tree(tmp_path, tiny) -> Tree:
    root = tmp_path / "archive"
    root.mkdir()
    return Tree(root, tiny)
