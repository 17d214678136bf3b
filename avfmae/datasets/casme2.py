"""CASME II (Yan et al., 2014): micro-expressions at 200 frames a second."""

from collections.abc import Iterator
from pathlib import Path

from avfmae.data.clip import Clip
from avfmae.datasets.interface import Dataset, Options
from avfmae.datasets.reading import expression, first_existing, one_of, table


def read(root: Path, options: Options) -> Iterator[Clip]:
    sheet = options.annotation or first_existing(root, "CASME2-coding*.xlsx", "**/CASME2-coding*.xlsx")
    for row in table(sheet, "Subject", "Filename", "OnsetFrame", "OffsetFrame", "Estimated Emotion"):
        subject, name = f"sub{row['Subject'].zfill(2)}", row["Filename"]
        folder = one_of(root, f"Cropped/{subject}/{name}", f"CASME2_RAW_selected/{subject}/{name}", f"{subject}/{name}")
        # One row's offset lies before its onset; its folder holds the expression and nothing else.
        start, end = expression(folder, row["OnsetFrame"], row["OffsetFrame"], options, whole=True)
        yield Clip(0, folder, start=start, end=end, label=row["Estimated Emotion"], fold=subject, subject=subject)


DATASETS = (
    Dataset(
        name="casme2",
        title="CASME II, 3 classes",
        corpus="casme2",
        task="classification",
        protocol="leave one subject out (24), pooled predictions",
        tree="CASME2-coding*.xlsx (Subject, Filename, OnsetFrame, OffsetFrame, Estimated Emotion)\n"
        "Cropped/sub01/EP02_01f/*.jpg, CASME2_RAW_selected/... or sub01/EP02_01f/*.jpg",
        licence="research only, by agreement",
        source="casme.psych.ac.cn",
        read=read,
        classes=("negative", "positive", "surprise"),
        labels={"disgust": "negative", "repression": "negative", "happiness": "positive", "surprise": "surprise"}
        | dict.fromkeys(("others", "fear", "sadness"), ""),
        metrics=("UF1", "UAR"),
        modalities=("video",),
        uniform=True,
        clips=145,
        histogram={"negative": 88, "positive": 32, "surprise": 25},
    ),
)
