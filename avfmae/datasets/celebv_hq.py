"""CelebV-HQ (Zhu et al., 2022): 35,666 clips of faces in the wild."""

import json
from collections.abc import Iterator
from pathlib import Path

from avfmae.data.clip import Clip
from avfmae.datasets.interface import Dataset, Options
from avfmae.datasets.reading import first_existing, videos_by_stem


def read(root: Path, options: Options) -> Iterator[Clip]:
    """Those of the list that are there: many videos are not on YouTube any more."""
    path = options.annotation or first_existing(root, "celebvhq_info.json", "**/celebvhq_info.json")
    try:
        listed = json.loads(path.read_text())["clips"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: is no list of CelebV-HQ ({type(error).__name__}: {error})") from error
    videos = videos_by_stem(root)
    for name, about in sorted(listed.items()):
        video = about["ytb_id"]
        if name in videos:
            yield Clip(0, videos[name], subject=video)
        elif video in videos:
            times = about["duration"]
            yield Clip(0, videos[video], start=float(times["start_sec"]), end=float(times["end_sec"]), subject=video)


DATASETS = (
    Dataset(
        name="celebv-hq",
        title="CelebV-HQ",
        corpus="celebv-hq",
        task="pretraining",
        protocol="pre-training",
        tree="celebvhq_info.json\n**/<clip>.mp4, cut already, or **/<YouTube video>.mp4",
        licence="research only",
        source="celebv-hq.github.io",
        read=read,
        clips=35_666,
    ),
)
