"""MER2024 (Lian et al., 2024): 5,030 labelled clips, whose folds are not published, and 115,595 without labels."""

from collections.abc import Iterator
from pathlib import Path

from avfmae.data.clip import Clip
from avfmae.data.sources import find_files
from avfmae.datasets.interface import Dataset, Options
from avfmae.datasets.reading import first_existing, official_folds, table, videos_by_stem


def read_labelled(root: Path, options: Options) -> Iterator[Clip]:
    folder = options.annotation or root / "labels"
    if folder.is_dir():
        files = [(folder / f"set_{k}" / "train.txt", folder / f"set_{k}" / "test.txt") for k in range(1, 6)]
        rows = official_folds(files)
    else:
        annotation = options.annotation or first_existing(root, "label*.csv", "*/label*.csv")
        rows = [(row["name"].removesuffix(".mp4"), row["discrete"], None) for row in table(annotation, "name", "discrete")]
    videos = videos_by_stem(root)
    for name, label, fold in rows:
        yield Clip(0, videos.get(name, str(root / f"{name}.mp4")), label=label, fold=fold)


def read_unlabelled(root: Path, options: Options) -> Iterator[Clip]:
    return (Clip(0, path) for path in find_files(next(iter(sorted(root.glob("*unlabel*"))), root))[0])


LICENCE, SOURCE = "research only, by agreement", "merchallenge.cn"
DATASETS = (
    Dataset(
        name="mer24",
        title="MER2024, Train&Val",
        corpus="mer2024",
        task="classification",
        protocol="5 folds of the authors, not published: give theirs, or fine-tuning cuts its own",
        tree="labels/set_1/train.txt, test.txt (or --annotation FOLDER; lines 'name.mp4 label')\nor label*.csv (name,discrete)\n"
        "**/<name>.mp4",
        licence=LICENCE,
        source=SOURCE,
        read=read_labelled,
        classes=("worried", "happy", "neutral", "angry", "surprise", "sad"),
        metrics=("WAR", "WF1"),
        folds=5,
        clips=5030,
    ),
    Dataset(
        name="mer24-unlabelled",
        title="MER2024, unlabelled",
        corpus="mer2024",
        task="pretraining",
        protocol="pre-training",
        tree="*unlabel*/**/*.mp4 (or any videos)",
        licence=LICENCE,
        source=SOURCE,
        read=read_unlabelled,
        clips=115_595,
    ),
)
