"""eNTERFACE'05 (Martin et al., 2006): 43 people say 5 sentences in each of 6 emotions. The folders are the annotation."""

import re
from collections.abc import Iterator
from pathlib import Path

from avfmae.data.clip import Clip
from avfmae.data.sources import find_files
from avfmae.datasets.interface import Dataset, Options

CLASSES = ("anger", "disgust", "fear", "happiness", "sadness", "surprise")
# Files' own names are no annotation: subject 11's say s12, subject 3's s_3, and two of subject 2 are exchanged.
FOLDER = re.compile(rf"subject[ _](\d+)/({'|'.join(CLASSES)})/sentence[ _](\d)", re.IGNORECASE)
FIRST = (1, 11, 20, 29, 37)  # subject of each fold; 9, 9, 9, 8 and 8 people, since nobody is number 6


def read(root: Path, options: Options) -> Iterator[Clip]:
    clips = []
    for path in map(Path, find_files(root, ".avi")[0]):
        if found := FOLDER.search(path.parent.as_posix()):
            subject = int(found[1])
            fold = sum(subject >= first for first in FIRST)
            clip = Clip(0, str(path), label=found[2].lower(), fold=str(fold), subject=str(subject))
            clips.append((subject, found[2].lower(), found[3], path.name, clip))
    yield from (clip for *_, clip in sorted(clips, key=lambda item: item[:-1]))


DATASETS = (
    Dataset(
        name="enterface",
        title="eNTERFACE'05",
        corpus="enterface",
        task="classification",
        protocol="5 folds of consecutive people, mean over folds",
        tree="**/subject 1/anger/sentence 1/*.avi",
        licence="research, free to download",
        source="enterface.net/enterface05",
        read=read,
        classes=CLASSES,
        clips=1287,
        histogram={name: 212 if name == "happiness" else 215 for name in CLASSES},
        by_fold={"1": 270, "2": 270, "3": 267},
    ),
)
