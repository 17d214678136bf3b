"""SMIC-HS (Li et al., 2013): micro-expressions at 100 frames a second. The folders are the annotation."""

import re
from collections.abc import Iterator
from pathlib import Path

from avfmae.data.clip import Clip
from avfmae.datasets.interface import Dataset, Options
from avfmae.datasets.reading import first_existing

NAME = re.compile(r"s0*(\d+)_(ne|po|sur?)_0*(\d+)")


def read(root: Path, options: Options) -> Iterator[Clip]:
    folder = first_existing(root, "*cropped*/HS", "HS", "*/HS")
    found = [(NAME.fullmatch(path.name), path) for path in folder.glob("s*/micro/*/s*_*_*")]
    for match, path in sorted(found, key=lambda item: item[1].name):
        if match is None:
            raise ValueError(f"{path}: expected a folder such as s01_ne_01")
        subject = f"s{int(match[1]):02d}"
        yield Clip(0, str(path), label=path.parent.name, fold=subject, subject=subject)


DATASETS = (
    Dataset(
        name="smic",
        title="SMIC-HS",
        corpus="smic",
        task="classification",
        protocol="leave one subject out (16), pooled predictions",
        tree="HS/s01/micro/negative/s01_ne_01/*.bmp (below *cropped*/, or as it is)",
        licence="research only, by agreement",
        source="www.oulu.fi/en/university/faculties-and-units/faculty-information-technology-and-electrical-engineering/"
        "center-machine-vision-and-signal-analysis",
        read=read,
        classes=("negative", "positive", "surprise"),
        metrics=("UF1", "UAR"),
        modalities=("video",),
        uniform=True,
        clips=164,
        histogram={"negative": 70, "positive": 51, "surprise": 43},
    ),
)
