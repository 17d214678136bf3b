"""MMEW (Ben et al., 2021): micro-expressions at 90 frames a second."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from avfmae.data.clip import Clip
from avfmae.datasets.interface import Dataset, Options
from avfmae.datasets.reading import expression, first_existing, one_of, table


def read(root: Path, options: Options) -> Iterator[Clip]:
    sheet = options.annotation or first_existing(root, "MMEW*.xlsx", "**/MMEW*.xlsx")
    for row in table(sheet, "Filename", "OnsetFrame", "OffsetFrame", "Estimated Emotion"):
        name, emotion = row["Filename"], row["Estimated Emotion"].lower()
        folder = one_of(root, f"Micro_Expression/{emotion}/{name}", f"{emotion}/{name}")
        start, end = expression(folder, row["OnsetFrame"], row["OffsetFrame"], options, whole=True)
        subject = name.partition("-")[0]
        yield Clip(0, folder, start=start, end=end, label=emotion, fold=subject, subject=subject)


THREE = Dataset(
    name="mmew",
    title="MMEW, 3 classes",
    corpus="mmew",
    task="classification",
    protocol="leave one subject out, pooled predictions",
    tree="MMEW*.xlsx (Filename, OnsetFrame, OffsetFrame, Estimated Emotion)\nMicro_Expression/happiness/S01-01-001/*.jpg or "
    "happiness/S01-01-001/*.jpg",
    licence="research only, by agreement",
    source="www.dpailab.com/database.html",
    read=read,
    classes=("negative", "positive", "surprise"),
    labels=dict.fromkeys(("anger", "disgust", "fear", "sadness"), "negative")
    | {"happiness": "positive", "surprise": "surprise", "others": ""},
    metrics=("UF1", "UAR"),
    modalities=("video",),
    uniform=True,
    clips=234,
    histogram={"negative": 109, "positive": 36, "surprise": 89},
)
FOUR = replace(
    THREE,
    name="mmew-4",
    title="MMEW, 3 classes and others",
    classes=(*THREE.classes, "others"),
    labels=THREE.labels | {"others": "others"},
    clips=300,
    histogram=THREE.histogram | {"others": 66},
)
DATASETS = (THREE, FOUR)
