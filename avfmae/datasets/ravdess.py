"""RAVDESS (Livingstone and Russo, 2018): the speech of 24 actors. A file's name is its annotation, seven numbers."""

import re
from collections.abc import Iterator
from pathlib import Path

from avfmae.data.clip import Clip
from avfmae.data.sources import find_files
from avfmae.datasets.interface import Dataset, Options

# Modality (01 both, 02 video, 03 audio), channel 01 (speech), then the recording: emotion, ..., actor.
NAME = re.compile(r"(0[123])-01-((0[1-8])-0[12]-0[12]-0[12]-([01]\d|2[0-4]))\.(?:mp4|wav)", re.IGNORECASE)
CLASSES = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")


def read(root: Path, options: Options) -> Iterator[Clip]:
    files: dict[str, dict[str, str]] = {}  # recording -> modality -> path
    for path in find_files(root, ".mp4", ".wav")[0]:
        if found := NAME.fullmatch(Path(path).name):
            files.setdefault(found[2], {})[found[1]] = path
    for recording, of in sorted(files.items(), key=lambda item: item[0].split("-")[::-1]):
        emotion, actor = recording[:2], recording[-2:]
        expected = str(root / f"Actor_{actor}" / f"02-01-{recording}.mp4")
        if "03" in of or "01" not in of:  # as published: the video-only file, and the sound beside it
            path, sound = of.get("02", of.get("01", expected)), of.get("03")
        else:
            path, sound = of["01"], None
        fold = (int(actor) - 1) // 4 + 1
        yield Clip(0, path, sound, label=CLASSES[int(emotion) - 1], fold=str(fold), subject=actor)


DATASETS = (
    Dataset(
        name="ravdess",
        title="RAVDESS, speech",
        corpus="ravdess",
        task="classification",
        protocol="6 folds of 4 consecutive actors, mean over folds",
        tree="**/Actor_01/02-01-01-01-01-01-01.mp4 and **/Actor_01/03-01-01-01-01-01-01.wav\n"
        "or **/Actor_01/01-01-01-01-01-01-01.mp4, with its own sound",
        licence="CC BY-NC-SA 4.0",
        source="zenodo.org/record/1188976",
        read=read,
        classes=CLASSES,
        clips=1440,
        histogram={name: 96 if name == "neutral" else 192 for name in CLASSES},
        by_fold={str(fold): 240 for fold in range(1, 7)},
    ),
)
