"""All names, labels and folds of the lists that the authors of HiCMAE, MAE-DFER and SVFAP released, clip by clip.

``tests/data/published_lists.parquet`` holds a row a clip: data set, name, label, which of the folds 1 to 3 tests it (0: a later
one; of FERV39k: the test split), and whose list lacks it. The 83 released files of these folds are made from it.
"""

import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet
import pytest

from avfmae.data.manifest import read_released_list
from avfmae.datasets import find_dataset

pytestmark = pytest.mark.slow

CLIPS = pyarrow.parquet.read_table(Path(__file__).parents[1] / "data" / "published_lists.parquet").to_pylist()
LISTED = ("crema-d", "dfew", "enterface", "ferv39k", "mafw", "msp-improv", "ravdess", "werewolf-xl")
# What HiCMAE's lists lack: what its face detector or sound tools did not get through; of MAFW, clips without sound.
LOST = {
    "crema-d": {"1040_ITH_SAD_XX", "1064_IEO_DIS_MD", "1064_TIE_SAD_XX", "1076_MTI_NEU_XX", "1076_MTI_SAD_XX"},
    "mafw": {"00903", "03414", "03440", "03721", "03724", "03726", "03727", "03728",
             "03730", "03732", "03810", "03855", "03927", "03928", "03931", "09529"},
}  # fmt: skip


def published(name):
    return {row["clip"]: row for row in CLIPS if row["dataset"] == name}


def official(tree, train, test, line):
    """Files of five folds: 1 to 3 as published; what a later fold tests is dealt out to 4 and 5."""

    def write(name):
        rows = published(name).values()
        folds = [row["fold"] or 4 + i % 2 for i, row in enumerate(rows)]
        for k in range(1, 6):
            for path, tested in ((train, False), (test, True)):
                lines = [line(row) for row, fold in zip(rows, folds, strict=True) if (fold == k) == tested]
                tree.text(path.format(k), *lines)

    return write


def crema_d(tree):
    names = [clip.replace("1040_ITH_SAD_XX", "1040_ITH_SAD_X") for clip in published("crema-d")]
    tree.media(*(f"VideoFlash/{name}.flv" for name in names))


def ravdess(tree):
    clips = published("ravdess")
    tree.media(*(f"{clip}.mp4" for clip in clips), *(f"{clip.replace('/02-', '/03-')}.wav" for clip in clips))


def enterface(tree):
    names = (clip.replace("subject_", "subject ").replace("sentence_", "sentence ") for clip in published("enterface"))
    tree.media(*(f"enterface database/{name}.avi" for name in names))


def mafw(tree):
    folder, classes = "Train & Test Set/single/no_caption/set_{}", find_dataset("mafw").classes
    line = lambda row: f"{row['clip']}.mp4 {classes[int(row['label'])]}"  # noqa: E731
    official(tree, f"{folder}/train.txt", f"{folder}/test.txt", line)("mafw")


def dfew(tree):
    file = "EmoLabel_DataSplit/{}(single-labeled)/set_{{}}.csv"
    line = lambda row: f"{int(row['clip'])},{int(row['label']) + 1}"  # noqa: E731
    official(tree, file.format("train"), file.format("test"), line)("dfew")
    for path in tree.root.glob("EmoLabel_DataSplit/*/*.csv"):
        path.write_text(f"video_name,label\n{path.read_text()}")


def ferv39k(tree):
    classes, rows = find_dataset("ferv39k").classes, published("ferv39k").values()
    tree.text("4_setups/All_scenes/test_All.csv", *(f"{row['clip']} {classes[int(row['label'])]}" for row in rows))
    tree.text("4_setups/All_scenes/train_All.csv")  # not among the lists


def msp_improv(tree):
    lines = [
        f"UTD-{row['clip'].rpartition('/')[2].removeprefix('MSP-')}.avi; {'AHNS'[int(row['label'])]}; A:2.5; V:NaN; D:3.0 ; N:3;"
        for row in published("msp-improv").values()
    ]
    tree.text("Evalution.txt", *lines)


def werewolf_xl(tree):
    tree.text("labels.csv", *(f"{row['clip']} {row['label']}" for row in published("werewolf-xl").values()))


BUILD = {"crema-d": crema_d, "dfew": dfew, "enterface": enterface, "ferv39k": ferv39k, "mafw": mafw, "msp-improv": msp_improv,
         "ravdess": ravdess, "werewolf-xl": werewolf_xl}  # fmt: skip


def listed_name(name, path):
    """A clip's name in the lists, from its path in the manifest."""
    parts = Path(path).with_suffix("").parts
    if name == "enterface":
        return "/".join(parts[-4:]).replace(" ", "_")
    long = {"ravdess": 2, "ferv39k": 3, "msp-improv": 4}.get(name, 1)
    return "/".join(parts[-long:]).replace("1040_ITH_SAD_X", "1040_ITH_SAD_XX").replace("XXX", "XX")


@pytest.mark.parametrize("name", LISTED)
def test_every_clip_has_the_published_label_and_fold(tree, name):
    BUILD[name](tree)
    dataset, expected = find_dataset(name), published(name)
    classes = ("arousal", "valence", "dominance") if name == "werewolf-xl" else ()
    clips = {listed_name(name, clip.path): clip for clip in tree.annotated(name, classes=classes)}
    assert clips.keys() == expected.keys()
    wrong = []
    for clip, row in expected.items():
        label = row["label"] if dataset.task == "regression" else dataset.classes[int(row["label"])]
        got = clips[clip]
        fold = got.split == "test" if name == "ferv39k" else int(got.fold) == row["fold"] if row["fold"] else int(got.fold) > 3
        if got.label != label or not fold:
            wrong.append((clip, got.label, got.fold, row))
    assert wrong == []
    if dataset.histogram and len(clips) == dataset.clips:
        assert dict(Counter(clip.label for clip in clips.values())) == dict(dataset.histogram)
    by_fold = Counter(clip.fold or clip.split for clip in clips.values())
    assert {fold: by_fold[fold] for fold in dataset.by_fold if fold != "train"} == {
        fold: count for fold, count in dataset.by_fold.items() if fold != "train"
    }


def test_the_clips_that_the_lists_of_one_author_lack():
    lost = {name: {clip for clip, row in published(name).items() if row["lacks"]} for name in LISTED}
    assert {name: clips for name, clips in lost.items() if clips} == LOST
    assert {row["lacks"] for row in CLIPS} == {"", "hicmae"}


FILES = {  # whose lists there are, with their own columns
    "hicmae": ("/data/{dataset}/openface/{clip} /data/{dataset}/audio_16k/{clip}.wav {label}",
               ("crema-d", "mafw", "msp-improv", "ravdess", "werewolf-xl")),
    "mae-dfer": ("/data/{dataset}/frames/{clip} {label}", ("crema-d", "dfew", "enterface", "ferv39k", "mafw", "ravdess")),
    "svfap": ("/data/{dataset}/frames/{clip} {label}", ("dfew", "ferv39k", "mafw")),
}  # fmt: skip
HAVE_VAL = {("hicmae", "msp-improv"), ("mae-dfer", "dfew"), ("svfap", "dfew")}  # which is the test list again


def released_files(folder):
    """(file, rows) of each released list of the folds 1 to 3."""
    for source, (line, names) in FILES.items():
        for name in names:
            rows = [(row["fold"], line.format(**row)) for row in published(name).values() if source not in row["lacks"]]
            for fold in (0,) if name == "ferv39k" else (1, 2, 3):
                test = [text for of, text in rows if of == fold]
                parts = {"test": test} | ({} if name == "ferv39k" else {"train": [text for of, text in rows if of != fold]})
                for part, lines in (parts | ({"val": test} if (source, name) in HAVE_VAL else {})).items():
                    path = folder / f"{source}-{name}-{fold}-{part}.csv"
                    path.write_text("\n".join(lines) + "\n")
                    yield path, lines


def test_all_released_lists_are_imported(tmp_path):
    files = list(released_files(tmp_path))
    began, read = time.process_time(), 0
    for path, lines in files:
        clips = read_released_list(path)
        read += len(clips)
        first, last = clips[0], clips[len(clips) - 1]
        assert " ".join(filter(None, (first.path, first.audio_path, first.label))) == lines[0]
        assert " ".join(filter(None, (last.path, last.audio_path, last.label))) == lines[-1]
    seconds = time.process_time() - began  # of this process, whatever else the machine does
    assert (len(files), read) == (83, 310_156)
    assert seconds * 580_638 / read < 10  # 580,638 rows are in the lists of all folds
