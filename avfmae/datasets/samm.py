"""SAMM (Davison et al., 2018): micro-expressions at 200 frames a second."""

from collections.abc import Iterator
from pathlib import Path

from avfmae.data.clip import Clip
from avfmae.datasets.interface import Dataset, Options
from avfmae.datasets.reading import expression, first_existing, one_of, table


def read(root: Path, options: Options) -> Iterator[Clip]:
    sheet = options.annotation or first_existing(root, "SAMM_Micro_FACS_Codes*.xlsx", "**/SAMM_Micro_FACS_Codes*.xlsx")
    # The names of the columns stand below some lines of text.
    for row in table(sheet, "Subject", "Filename", "Onset Frame", "Offset Frame", "Estimated Emotion"):
        subject, name = row["Subject"].zfill(3), row["Filename"]
        folder = one_of(root, f"SAMM/{subject}/{name}", f"{subject}/{name}")
        start, end = expression(folder, row["Onset Frame"], row["Offset Frame"], options, whole=True)
        yield Clip(0, folder, start=start, end=end, label=row["Estimated Emotion"], fold=subject, subject=subject)


DATASETS = (
    Dataset(
        name="samm",
        title="SAMM, 3 classes",
        corpus="samm",
        task="classification",
        protocol="leave one subject out (28), pooled predictions",
        tree="SAMM_Micro_FACS_Codes*.xlsx (Subject, Filename, Onset Frame, Offset Frame, Estimated Emotion)\n006/006_1_2/*.jpg",
        licence="research only, by agreement",
        source="www2.docm.mmu.ac.uk/STAFF/M.Yap/dataset.php",
        read=read,
        classes=("negative", "positive", "surprise"),
        labels=dict.fromkeys(("Anger", "Contempt", "Disgust", "Fear", "Sadness"), "negative")
        | {"Happiness": "positive", "Surprise": "surprise", "Other": ""},
        metrics=("UF1", "UAR"),
        modalities=("video",),
        uniform=True,
        clips=133,
        histogram={"negative": 92, "positive": 26, "surprise": 15},
    ),
)
