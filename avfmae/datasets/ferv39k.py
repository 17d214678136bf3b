"""FERV39k (Wang et al., 2022): 38,935 clips of 22 scenes, 7 emotions, one official split."""

from collections.abc import Iterator
from pathlib import Path

from avfmae.data.clip import Clip
from avfmae.datasets.interface import Dataset, Options
from avfmae.datasets.reading import pairs

CLASSES = ("Happy", "Sad", "Neutral", "Angry", "Surprise", "Disgust", "Fear")


def read(root: Path, options: Options) -> Iterator[Clip]:
    folder = options.annotation or root / "4_setups" / "All_scenes"
    for split in ("train", "test"):
        for name, label in pairs(folder / f"{split}_All.csv"):
            yield Clip(0, str(root / "2_ClipsforFaceCrop" / name), label=label, split=split)


DATASETS = (
    Dataset(
        name="ferv39k",
        title="FERV39k",
        corpus="ferv39k",
        task="classification",
        protocol="official split, trained on 31,088 clips and tested on 7,847",
        tree="4_setups/All_scenes/train_All.csv, test_All.csv (lines 'Crime/Angry/0063 Angry')\n"
        "2_ClipsforFaceCrop/Crime/Angry/0063/*.jpg",
        licence="research only, by agreement",
        source="wangyanckxx.github.io/Proj_CVPR2022_FERV39k.html",
        read=read,
        classes=CLASSES,
        folds=None,
        modalities=("video",),
        clips=38_935,
        by_fold={"train": 31_088, "test": 7847},
    ),
)
