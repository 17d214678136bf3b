"""DFEW (Jiang et al., 2020): clips of films, 7 emotions, in 5 official folds."""

from collections.abc import Iterator
from pathlib import Path

from avfmae.data.clip import Clip
from avfmae.datasets.interface import Dataset, Options
from avfmae.datasets.reading import official_folds, table, videos_by_stem

CLASSES = ("happy", "sad", "neutral", "angry", "surprise", "disgust", "fear")


def _pairs(path: Path) -> Iterator[tuple[str, str]]:
    for row in table(path, "video_name", "label"):
        yield row["video_name"].zfill(5), row["label"]


def read(root: Path, options: Options) -> Iterator[Clip]:
    folder = options.annotation or root / "EmoLabel_DataSplit"
    files = [(folder / f"{part}(single-labeled)" / f"set_{k}.csv") for k in range(1, 6) for part in ("train", "test")]
    videos = videos_by_stem(root / "Clip" / "original")
    originals = {f"{int(stem):05d}": path for stem, path in videos.items() if stem.isdecimal()}
    for name, label, fold in official_folds([*zip(files[::2], files[1::2], strict=True)], _pairs):
        original, faces = originals.get(name), root / "Clip" / "jpg_256" / name
        # The faces in their original number: those of jpg_224_16f are 16, evenly spread, and give far lower numbers.
        path = original if original and not faces.exists() else str(faces)
        yield Clip(0, path, None if path == original else original, label=label, fold=fold)


DATASETS = (
    Dataset(
        name="dfew",
        title="DFEW, single labels",
        corpus="dfew",
        task="classification",
        protocol="official 5 folds, mean over folds",
        tree="EmoLabel_DataSplit/train(single-labeled)/set_1.csv, test(single-labeled)/set_1.csv (video_name,label from 1 to 7)\n"
        "Clip/jpg_256/00001/*.jpg (faces) and Clip/original/**/1.mp4 (sound)\nor Clip/original/**/1.mp4",
        licence="research only, by agreement",
        source="dfew-dataset.github.io",
        read=read,
        classes=CLASSES,
        labels={str(i): name for i, name in enumerate(CLASSES, 1)},
        clips=11_697,
        histogram=dict(zip(CLASSES, (2445, 1894, 2669, 2173, 1469, 145, 902), strict=True)),
        by_fold={"1": 2341, "2": 2341, "3": 2340},
    ),
)
