"""IEMOCAP (Busso et al., 2008): 10 actors in 5 sessions of two. Videos show whole dialogues, both actors side by side."""

import re
from collections.abc import Iterator
from pathlib import Path

from avfmae.data.clip import Clip
from avfmae.datasets.interface import Dataset, Options
from avfmae.datasets.reading import lines

# [6.2901 - 8.2357]  Ses01F_impro01_F000  neu  [2.5000, 2.5000, 2.5000]   (other lines are single raters')
LINE = re.compile(r"\[([\d.]+) - ([\d.]+)\]\s+((Ses0(\d)([FM])_\w+)_([FM])\w+)\s+(\w+)\s.*")
LEFT, RIGHT = (0.0, 0.0, 360.0, 480.0), (360.0, 0.0, 360.0, 480.0)  # halves of the frame, in which the face is looked for


def read(root: Path, options: Options) -> Iterator[Clip]:
    for annotation in sorted(root.glob("Session[1-5]/dialog/EmoEvaluation/Ses*.txt")):
        folder = annotation.parents[1]
        for line in lines(annotation):
            if found := LINE.fullmatch(line):
                start, end, _, dialog, session, left, speaker, emotion = found.groups()
                avi, wav = folder / "avi" / "DivX" / f"{dialog}.avi", folder / "wav" / f"{dialog}.wav"
                yield Clip(
                    0, str(avi), str(wav) if wav.exists() else None, float(start), float(end),
                    emotion, fold=session, subject=f"Ses0{session}{speaker}", face=LEFT if speaker == left else RIGHT,
                )  # fmt: skip


DATASETS = (
    Dataset(
        name="iemocap",
        title="IEMOCAP, 4 classes",
        corpus="iemocap",
        task="classification",
        protocol="5 folds, leave one session out, mean over folds",
        tree="Session1/dialog/EmoEvaluation/Ses01F_impro01.txt\nSession1/dialog/avi/DivX/Ses01F_impro01.avi\n"
        "Session1/dialog/wav/Ses01F_impro01.wav (else the sound of the .avi)",
        licence="research only, by agreement",
        source="sail.usc.edu/iemocap",
        read=read,
        classes=("angry", "happy", "neutral", "sad"),  # the order is ours: none is published
        labels={"ang": "angry", "hap": "happy", "exc": "happy", "neu": "neutral", "sad": "sad"}
        | dict.fromkeys(("fru", "xxx", "sur", "fea", "oth", "dis"), ""),
        clips=5531,
        histogram={"angry": 1103, "happy": 1636, "neutral": 1708, "sad": 1084},
    ),
)
