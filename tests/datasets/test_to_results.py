"""From an unpacked archive to the protocol's results: folders of frames, leave-one-subject-out, pooled UF1."""

import json

import pytest

from avfmae.cli import main
from avfmae.datasets import find_dataset

pytestmark = pytest.mark.slow
EXPERIMENT = """
dataset = "{name}"
protocol = "{protocol}"
resamples = 20
[finetune]
preset = "tiny"
val_share = 0.0
[finetune.data]
workers = 0
segments = 1
crops = 1
[finetune.optim]
epochs = 1
total_batch = 2
"""


def run(tree, name, **options):
    """Manifest and protocol as the command writes them, then the experiment; gives its results and its page."""
    out = tree.write(name, **options)
    file = tree.root.parent / "experiment.toml"
    file.write_text(EXPERIMENT.format(name=name, protocol=out.with_suffix(".toml")))
    with pytest.raises(SystemExit, match=r"training clips are tested[\s\S]*is a copy of a held-out clip"):
        main(["experiment", str(file), "--out", str(tree.root.parent / "results")])  # as all are one picture here
    main(["experiment", str(file), "--out", str(tree.root.parent / "results"), "--leaks", "names"])
    results = json.loads((tree.root.parent / "results" / "results.json").read_text())
    return results["variants"][""], (tree.root.parent / "results" / "report.html").read_text()


def test_micro_expressions(tree):
    rows = [("Subject", "Filename", "Onset Frame", "Apex Frame", "Offset Frame", "Estimated Emotion")]
    for number, emotion in ((6, "Anger"), (7, "Happiness"), (9, "Surprise")):
        rows.append((number, f"{number:03d}_1_1", 12, 14, 17, emotion))
        tree.images(f"{number:03d}/{number:03d}_1_1", 10, 20, f"{number:03d}_{{:05d}}.jpg")
    tree.sheet("SAMM_Micro_FACS_Codes_v2.xlsx", *rows)
    one, page = run(tree, "samm")
    assert (one["modalities"], one["classes"]) == (["video"], list(find_dataset("samm").classes))
    last = one["summary"]["last"]
    assert list(last["folds"]["0"]) == ["fold 0", "fold 1", "fold 2"] and one["select"] == "UF1"
    assert sum(map(sum, last["confusion"])) == 3 and "HTNet" in page and "81.31" in page


def test_faces_as_images_with_a_sound_of_their_own(tree):
    """Both modalities, of different files; a regression whose dimensions have names."""
    traits = {1: "0.1,0.9,0.5", 7: "0.4,0.2,0.3", 13: "0.8,0.6,0.7", 19: "0.5,0.5,0.1"}  # by game
    lines = (f"{game:02d}_01_001,{numbers}" for game, numbers in traits.items())
    tree.text("labels.csv", "name,arousal,valence,dominance", *lines)
    for game in traits:
        tree.media(f"clips/{game:02d}_01_001.mp4", f"wav/{game:02d}_01_001.wav")
        tree.images(f"faces/{game:02d}_01_001", 1, 12)
    one, page = run(tree, "werewolf-xl", faces=tree.root / "faces", sound=tree.root / "wav")
    assert {"PCC_arousal", "CCC_dominance"} <= set(one["summary"]["last"]["pooled"]) and one["clips"] == 4
    assert "PCC_valence" in page and "69.23" in page
