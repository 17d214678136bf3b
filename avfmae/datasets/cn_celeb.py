"""CN-Celeb-AV and CN-CVS (Chen et al., 2023): Mandarin speakers."""

import re
from collections.abc import Iterator
from pathlib import Path

from avfmae.data.clip import Clip
from avfmae.data.sources import find_files
from avfmae.datasets.interface import Dataset, Options

SPEAKER = re.compile(r"(?:id|s|spk)\d+")


def read(root: Path, options: Options) -> Iterator[Clip]:
    for path in find_files(root)[0]:
        folders = Path(path).relative_to(root).parts[:-1]
        yield Clip(0, path, subject=next((name for name in folders if SPEAKER.fullmatch(name)), None))


DATASETS = (
    Dataset(
        name="cn-celeb",
        title="CN-Celeb-AV, CN-CVS",
        corpus="cn-celeb",
        task="pretraining",
        protocol="pre-training",
        tree="**/id00010/**/*.mp4 (any videos; a folder such as id00010 is the speaker)",
        licence="research only, by agreement",
        source="cnceleb.org",
        read=read,
    ),
)
