"""MSP-IMPROV (Busso et al., 2017): 12 actors in 6 sessions of two, who improvise."""

import re
from collections.abc import Iterator
from pathlib import Path

from avfmae.data.clip import Clip
from avfmae.datasets.interface import Dataset, Options
from avfmae.datasets.reading import first_existing, lines

# UTD-IMPROV-S01A-F01-P-FM01.avi; A; A:2.5; V:2.6; D:3.0 ; N:3.1;   (values may be NaN; other lines are single raters')
LINE = re.compile(r"UTD-(IMPROV-(S\d\d[A-Z])-([FM]\d*([1-6]))-([A-Z])-\w+)\.avi\s*;\s*(\w)\s*;.*")
CLASSES = ("angry", "happy", "neutral", "sad")


def read(root: Path, options: Options) -> Iterator[Clip]:
    # The archive's own file has a letter less.
    for line in lines(options.annotation or first_existing(root, "Evalution.txt", "Evaluation.txt", "*/Eval*tion.txt")):
        if found := LINE.fullmatch(line):
            name, scenario, actor, session, part, letter = found.groups()
            path = root / f"session{session}" / scenario / part / f"MSP-{name}.avi"
            wav = path.with_suffix(".wav")
            yield Clip(0, str(path), str(wav) if wav.exists() else None, label=letter, fold=session, subject=actor)


DATASETS = (
    Dataset(
        name="msp-improv",
        title="MSP-IMPROV, 4 classes",
        corpus="msp-improv",
        task="classification",
        protocol="6 folds, leave one session out, mean over folds",
        tree="Evalution.txt or Evaluation.txt\nsession1/S01A/P/MSP-IMPROV-S01A-F01-P-FM01.avi\n"
        "session1/S01A/P/MSP-IMPROV-S01A-F01-P-FM01.wav (else the sound of the .avi)",
        licence="research only, by agreement",
        source="ecs.utdallas.edu/research/researchlabs/msp-lab/MSP-Improv.html",
        read=read,
        classes=CLASSES,
        labels={"A": "angry", "H": "happy", "N": "neutral", "S": "sad", "O": "", "X": ""},
        clips=7798,
        histogram={"angry": 792, "happy": 2644, "neutral": 3477, "sad": 885},
    ),
)
