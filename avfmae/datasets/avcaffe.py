"""AVCAffe (Sarkar et al., 2023): 106 people at 9 remote tasks; each rates the task, and its clips have that label."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from avfmae.data.clip import Clip
from avfmae.data.sources import find_files
from avfmae.datasets.interface import Dataset, Options
from avfmae.datasets.reading import lines

TEST = frozenset(
    f"aiim{n:03d}" for n in (1, 2, 13, 14, 43, 44, 53, 54, 57, 58, 63, 64, 67, 68, 77, 78, 99, 100, 107, 108)
)  # the official validation people, on whom the published numbers are


def read(root: Path, options: Options, what: str) -> Iterator[Clip]:
    annotation = (options.annotation or root / "ground_truths") / f"{what}.txt"
    labels = {}  # of a participant's task
    for line in lines(annotation):
        if "," in line:
            task, _, label = line.partition(",")
            labels[task.strip()] = label.strip()
    for path in find_files(root / "videos" / "shorter_segments", ".avi")[0]:
        participant, task = Path(path).parts[-3:-1]
        if f"{participant}_{task}" in labels:
            split = "test" if participant in TEST else "train"
            yield Clip(0, path, label=labels[f"{participant}_{task}"], split=split, subject=participant)
        else:
            options.notes.append((path, f"{annotation} says nothing of {participant}_{task}"))


AROUSAL = Dataset(
    name="avcaffe-arousal",
    title="AVCAffe, arousal",
    corpus="avcaffe",
    task="classification",
    protocol="official split, trained on 86 people and tested on 20",
    tree="ground_truths/arousal.txt (lines 'aiim001_task_1, Excited')\nvideos/shorter_segments/aiim001/task_1/*.avi",
    licence="research only, by agreement",
    source="doi.org/10.5683/SP3/PSWY62",
    read=partial(read, what="arousal"),
    classes=("Excited", "Wide-awake", "Neutral", "Dull", "Calm"),
    metrics=("WF1", "UAR", "WAR"),
    folds=None,
    clips=58_112,
)
VALENCE = replace(
    AROUSAL,
    name="avcaffe-valence",
    title="AVCAffe, valence",
    tree=AROUSAL.tree.replace("arousal.txt", "valence.txt").replace("Excited", "Pleasant"),
    read=partial(read, what="valence"),
    classes=("Pleasant", "Pleased", "Neutral", "Unsatisfied", "Unpleasant"),
)
DATASETS = (AROUSAL, VALENCE)
