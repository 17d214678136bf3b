"""ChaLearn First Impressions V2 (Escalante et al., 2020): five traits of apparent personality, each a number from 0 to 1."""

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from avfmae.data.clip import Clip
from avfmae.datasets.interface import Dataset, Options
from avfmae.datasets.reading import first_existing, videos_by_stem

TRAITS = ("extraversion", "neuroticism", "agreeableness", "conscientiousness", "openness")
PARTS = (("train", "training"), ("val", "validation"), ("test", "test"))


class _Numbers(pickle.Unpickler):
    """Dictionaries of text and numbers; whatever would call something is refused."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"asks for {module}.{name}, expected dictionaries of numbers")


def read(root: Path, options: Options) -> Iterator[Clip]:
    videos = videos_by_stem(root)
    for split, part in PARTS:
        path = first_existing(options.annotation or root, f"annotation_{part}.pkl", f"**/annotation_{part}.pkl")
        with open(path, "rb") as file:
            try:
                traits = _Numbers(file, encoding="latin1").load()
                names = sorted(traits[TRAITS[0]])
                labels = {name: " ".join(str(traits[t][name]) for t in options.classes or TRAITS) for name in names}
            except (pickle.UnpicklingError, EOFError, KeyError, TypeError) as error:
                raise ValueError(f"{path}: is no annotation of {', '.join(TRAITS)} ({error})") from error
        for name, label in labels.items():
            stem = name.removesuffix(".mp4")  # <YouTube video>.<clip>
            yield Clip(0, videos.get(stem, str(root / name)), label=label, split=split, subject=stem.rpartition(".")[0])


DATASETS = (
    Dataset(
        name="first-impressions",
        title="ChaLearn First Impressions V2",
        corpus="first-impressions",
        task="regression",
        protocol="official split, trained on 6,000 clips and tested on 2,000",
        tree="**/annotation_training.pkl, annotation_validation.pkl, annotation_test.pkl\n**/J4GQm9j0JZ0.003.mp4",
        licence="research, free to download",
        source="chalearnlap.cvc.uab.cat/dataset/24/description",
        read=read,
        classes=TRAITS,
        metrics=("ACC", "CCC"),
        folds=None,
        clips=10_000,
        by_fold={"train": 6000, "val": 2000, "test": 2000},
    ),
)
