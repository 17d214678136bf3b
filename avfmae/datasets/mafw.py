"""MAFW (Liu et al., 2022): 10,045 clips of films and shows, one or several of 11 emotions each, in 5 official folds."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from avfmae.data.clip import Clip
from avfmae.datasets.interface import Dataset, Options
from avfmae.datasets.reading import first_existing, official_folds, one_of


def _read(root: Path, folder: Path) -> Iterator[Clip]:
    files = [(folder / f"set_{k}" / "train.txt", folder / f"set_{k}" / "test.txt") for k in range(1, 6)]
    for name, label, fold in official_folds(files):
        clip = one_of(root, f"data/clips/{name}.mp4", f"clips/{name}.mp4")
        faces = one_of(root, f"data/frames/{name}", f"frames/{name}")
        if Path(faces).exists():  # the official crops, on which the published numbers are
            yield Clip(0, faces, clip if Path(clip).exists() else None, label=label, fold=fold)
        else:
            yield Clip(0, clip, label=label, fold=fold)


def read_single(root: Path, options: Options) -> Iterator[Clip]:
    places = ("Train & Test Set/single/no_caption", "split/single/no_caption")
    return _read(root, options.annotation or first_existing(root, *places))


def read_compound(root: Path, options: Options) -> Iterator[Clip]:
    places = ("Train & Test Set/[!s]*/no_caption", "split/[!s]*/no_caption")
    return _read(root, options.annotation or first_existing(root, *places))


MEDIA = "data/frames/00025/*.png (faces) and data/clips/00025.mp4 (sound)\nor data/clips/00025.mp4"
SINGLE = Dataset(
    name="mafw",
    title="MAFW, 11 single labels",
    corpus="mafw",
    task="classification",
    protocol="official 5 folds, mean over folds",
    tree=f"Train & Test Set/single/no_caption/set_1/train.txt, test.txt (lines '00025.mp4 anger')\n{MEDIA}",
    licence="research only, by agreement",
    source="mafw-database.github.io/MAFW",
    read=read_single,
    classes=("anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise", "contempt", "anxiety", "helplessness",
             "disappointment"),
    clips=9172,
    histogram={"anger": 1390, "disgust": 639, "fear": 625, "happiness": 1242, "neutral": 1138, "sadness": 1470, "surprise": 1072,
               "contempt": 236, "anxiety": 916, "helplessness": 262, "disappointment": 182},
    by_fold={"1": 1839, "2": 1837, "3": 1833},
)  # fmt: skip
COMPOUND = replace(
    SINGLE,
    name="mafw-43",
    title="MAFW, 11 single and 32 compound labels",
    tree=f"Train & Test Set/<compound>/no_caption/set_1/train.txt, test.txt (or --annotation FOLDER)\n{MEDIA}",
    read=read_compound,
    classes=(),  # their order is not published
    clips=8996,
    histogram={},
    by_fold={},
)
DATASETS = (SINGLE, COMPOUND)
