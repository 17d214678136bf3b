"""CREMA-D (Cao et al., 2014): 91 actors, 12 sentences. A clip's name is its annotation."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from avfmae.data.clip import Clip
from avfmae.data.sources import find_files
from avfmae.datasets.interface import Dataset, Options

NAME = re.compile(r"(10[0-8]\d|109[01])_[A-Z]{3}_(ANG|DIS|FEA|HAP|NEU|SAD)_(?:LO|MD|HI|XX)")


def read(root: Path, options: Options) -> Iterator[Clip]:
    files: dict[str, dict[str, str]] = {}  # name -> suffix -> path
    for folder, suffix in (("VideoFlash", ".flv"), ("AudioWAV", ".wav")):
        for path in find_files(root / folder, suffix)[0]:
            stem = Path(path).stem
            files.setdefault(f"{stem}X" if stem.endswith("_X") else stem, {})[suffix] = path  # 1040_ITH_SAD_X
    for name, of in sorted(files.items()):
        found = NAME.fullmatch(name)
        if not found:
            options.notes.extend((path, "is no clip of CREMA-D; expected a name such as 1001_DFA_ANG_XX") for path in of.values())
            continue
        fold = min((int(found[1]) - 1001) // 18, 4) + 1  # 18 actors a fold, 19 in the last
        video = of.get(".flv", str(root / "VideoFlash" / f"{name}.flv"))
        yield Clip(0, video, of.get(".wav"), label=found[2], fold=str(fold), subject=found[1])


SIX = Dataset(
    name="crema-d",
    title="CREMA-D, 6 classes",
    corpus="crema-d",
    task="classification",
    protocol="5 folds of consecutive actors, mean over folds",
    tree="VideoFlash/1001_DFA_ANG_XX.flv\nAudioWAV/1001_DFA_ANG_XX.wav (else the sound of the .flv)",
    licence="Open Database License",
    source="github.com/CheyneyComputerScience/CREMA-D",
    read=read,
    classes=("ANG", "DIS", "FEA", "HAP", "NEU", "SAD"),
    clips=7442,
    histogram={"ANG": 1271, "DIS": 1271, "FEA": 1271, "HAP": 1271, "NEU": 1087, "SAD": 1271},
    by_fold={"1": 1463, "2": 1470, "3": 1476},
)
FOUR = replace(
    SIX,
    name="crema-d-4",
    title="CREMA-D, 4 classes",
    classes=("ANG", "HAP", "NEU", "SAD"),
    labels={"ANG": "ANG", "HAP": "HAP", "NEU": "NEU", "SAD": "SAD", "DIS": "", "FEA": ""},
    clips=4900,
    histogram={name: SIX.histogram[name] for name in ("ANG", "HAP", "NEU", "SAD")},
    by_fold={},
)
DATASETS = (SIX, FOUR)
