"""CAS(ME)³ (Li et al., 2022), part A: micro-expressions in long videos, frames numbered through."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from avfmae.data.clip import Clip
from avfmae.datasets.interface import Dataset, Options
from avfmae.datasets.reading import expression, first_existing, one_of, table


def read(root: Path, options: Options) -> Iterator[Clip]:
    sheet = options.annotation or first_existing(root, "cas(me)3_part_A_ME*.xlsx", "**/cas(me)3_part_A_ME*.xlsx")
    for row in table(sheet, "Subject", "Filename", "Onset", "Offset", "emotion"):
        place = f"{row['Subject']}/{row['Filename']}/color"
        folder = one_of(root, *(f"{above}{place}" for above in ("part_A/data/part_A/", "data/part_A/", "part_A/", "")))
        start, end = expression(folder, row["Onset"], row["Offset"], options, whole=False)
        subject = row["Subject"]
        yield Clip(0, folder, start=start, end=end, label=row["emotion"], fold=subject, subject=subject)


NEGATIVE = dict.fromkeys(("disgust", "fear", "anger", "sad"), "negative")
THREE = Dataset(
    name="casme3",
    title="CAS(ME)³, 3 classes",
    corpus="casme3",
    task="classification",
    protocol="leave one subject out, pooled predictions",
    tree="**/cas(me)3_part_A_ME*.xlsx (Subject, Filename, Onset, Offset, emotion)\n"
    "part_A/spNO.1/a/color/*.jpg or spNO.1/a/color/*.jpg",
    licence="research only, by agreement",
    source="casme.psych.ac.cn",
    read=read,
    classes=("negative", "positive", "surprise"),
    labels=NEGATIVE | {"happy": "positive", "surprise": "surprise", "others": ""},
    metrics=("UF1", "UAR"),
    modalities=("video",),
    uniform=True,
    clips=773,
    histogram={"negative": 508, "positive": 64, "surprise": 201},
)
FOUR = replace(
    THREE,
    name="casme3-4",
    title="CAS(ME)³, 3 classes and others",
    classes=(*THREE.classes, "others"),
    labels=THREE.labels | {"others": "others"},
    clips=943,
    histogram=THREE.histogram | {"others": 170},
)
DATASETS = (THREE, FOUR)
