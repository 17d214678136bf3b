"""MER2023 (Lian et al., 2023), track MER-MULTI: clips of Chinese films, 6 emotions."""

from collections.abc import Iterator
from pathlib import Path

from avfmae.data.clip import Clip
from avfmae.datasets.interface import Dataset, Options
from avfmae.datasets.reading import first_existing, table


def read(root: Path, options: Options) -> Iterator[Clip]:
    for split, part in (("train", "train"), ("test", "test1")):
        for row in table(
            first_existing(options.annotation or root, f"{part}-label.csv", f"*/{part}-label.csv"), "name", "discrete"
        ):
            yield Clip(0, str(root / part / f"{row['name'].removesuffix('.mp4')}.mp4"), label=row["discrete"], split=split)


DATASETS = (
    Dataset(
        name="mer-multi",
        title="MER2023, MER-MULTI",
        corpus="mer2023",
        task="classification",
        protocol="official split, trained on Train&Val and tested on test1",
        tree="train-label.csv, test1-label.csv (name,discrete,valence)\ntrain/<name>.mp4\ntest1/<name>.mp4",
        licence="research only, by agreement",
        source="merchallenge.cn",
        read=read,
        classes=("worried", "happy", "neutral", "angry", "surprise", "sad"),
        metrics=("WF1", "UAR"),
        folds=None,
        clips=3784,
        by_fold={"train": 3373, "test": 411},
    ),
)
