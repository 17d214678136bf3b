"""AVSpeech (Ephrat et al., 2018): a list of segments of YouTube videos, each with one speaker."""

import csv
from collections.abc import Iterator
from pathlib import Path

from avfmae.data.clip import Clip
from avfmae.datasets.interface import Dataset, Options
from avfmae.datasets.reading import first_existing, lines, videos_by_stem


def read(root: Path, options: Options) -> Iterator[Clip]:
    """Those of the list that are there: many videos are not on YouTube any more."""
    videos = videos_by_stem(root)
    cut: dict[str, list[str]] = {}  # YouTube video -> segments that are files of their own, named <video>_<start>...
    for stem, path in videos.items():
        if len(stem) > 12 and stem[11] == "_":
            cut.setdefault(stem[:11], []).append(path)
    yield from (Clip(0, path, subject=video) for video, paths in cut.items() for path in sorted(paths))
    if cut and not any(len(stem) == 11 for stem in videos):
        return
    for row in csv.reader(lines(options.annotation or first_existing(root, "avspeech_train.csv", "**/avspeech_*.csv"))):
        video, start, end = row[:3]
        if video in videos:
            yield Clip(0, videos[video], start=float(start), end=float(end), subject=video)


DATASETS = (
    Dataset(
        name="avspeech",
        title="AVSpeech",
        corpus="avspeech",
        task="pretraining",
        protocol="pre-training",
        tree="avspeech_train.csv (video,start,end,x,y) and **/<video>.mp4\nor **/<video>_<start>*.mp4, segments cut already",
        licence="CC BY 4.0 (list)",
        source="looking-to-listen.github.io/avspeech",
        read=read,
    ),
)
