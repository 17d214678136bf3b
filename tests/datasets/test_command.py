"""``avfmae dataset``: the list, what is known of one, names as they are typed, and ``--verify``."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from media_files import RATE, write_wav

from avfmae.cli import main
from avfmae.datasets import datasets, find_dataset
from avfmae.datasets.command import row
from avfmae.datasets.drawn import encode

DOCS = Path(__file__).parents[2] / "docs" / "datasets.md"


def test_all_are_listed(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    main(["dataset"])
    told = capsys.readouterr().out
    for one in datasets().values():
        assert one.title in told and one.licence in told and one.source in told and one.metrics[0] in told
    assert "crema-d" in told and "7,442 clips; classification, 6 classes; 5 folds of consecutive actors" in told


@pytest.mark.parametrize("name", datasets())
def test_what_is_known_of_one(name, capsys):
    one = datasets()[name]
    main(["dataset", name])
    told = capsys.readouterr().out
    assert one.title in told and one.tree.splitlines()[0][:40] in told
    assert f"| {' | '.join((f'`{name}`', *row(one)[1:7]))} |" in DOCS.read_text()
    if one.histogram:
        assert sum(one.histogram.values()) == one.clips and list(one.histogram) == list(one.classes)
    if one.labels:
        assert set(one.labels.values()) - {""} == set(one.classes)


@pytest.mark.parametrize(
    ("typed", "name"),
    [("crema-d", "crema-d"), ("crema_d", "crema-d"), ("CREMA-D", "crema-d"), ("CremaD", "crema-d"), ("CREMA_D_4", "crema-d-4"),
     ("CASME II", "casme2"), ("CAS(ME)^3", "casme3"), ("CAS(ME)³", "casme3"), ("eNTERFACE'05", "enterface"),
     ("MAFW 43", "mafw-43"), ("MER-MULTI", "mer-multi"), ("MEGC 2019 composite", "megc2019"), ("SMIC-HS", "smic"),
     ("FERV39K", "ferv39k")],
)  # fmt: skip
def test_names_as_they_are_typed(typed, name):
    assert find_dataset(typed).name == name


def test_an_unknown_name_is_told_the_known_ones():
    with pytest.raises(SystemExit, match=r"dataset: got 'afew', expected one of avcaffe-arousal, .*, werewolf-xl"):
        main(["dataset", "afew"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--root", "{root}/none", "--out", "{root}/m.csv"], "root: .*/none is no folder; expected the folder of CREMA-D"),
        (["--root", "{root}", "--out", "{root}/m.csv"], "holds no clip of CREMA-D, 6 classes; expected\nVideoFlash/"),
        (["--root", "{root}"], "out: none is given, expected the manifest to write"),
        (["--root", "{root}", "--out", "m.csv", "--classes", "ANG", "DIS"], "classes: got ANG, DIS, expected ANG, DIS, FEA"),
    ],
    ids=["no folder", "another folder", "no out", "classes"],
)
def test_what_is_amiss_is_told_in_a_line(tmp_path, arguments, message):
    with pytest.raises(SystemExit, match=message):
        main(["dataset", "crema-d", *(argument.format(root=tmp_path) for argument in arguments)])


def test_sound_and_faces_from_elsewhere(tree, tmp_path):
    tree.media("VideoFlash/1001_DFA_ANG_XX.flv", "VideoFlash/1001_IEO_SAD_HI.flv")
    tree.media("faces/1001_DFA_ANG_XX/1.png", "faces/1001_IEO_SAD_HI.mp4", "wav/1001_IEO_SAD_HI.wav", "wav/1001_DFA_ANG_XX.wav")
    classes = ("SAD", "ANG", "DIS", "FEA", "HAP", "NEU")
    folders = {"faces": tree.root / "faces", "sound": tree.root / "wav"}
    assert tree.manifest("crema-d", "audio_path", classes=classes, **folders) == [
        ("faces/1001_DFA_ANG_XX", "ANG", "wav/1001_DFA_ANG_XX.wav"),
        ("faces/1001_IEO_SAD_HI.mp4", "SAD", "wav/1001_IEO_SAD_HI.wav"),
    ]
    assert tree.settings["classes"] == list(classes)
    del folders["sound"]  # the sound of the original is kept where faces are images
    assert [audio for *_, audio in tree.manifest("crema-d", "audio_path", **folders)] == ["VideoFlash/1001_DFA_ANG_XX.flv", None]


def broken_crema_d(tree):
    """Good clips and one of each fault; gives file name -> reason."""
    videos = ["1001_DFA_ANG_XX", "1019_IEO_SAD_HI", "1091_WSI_NEU_XX", "1002_DFA_DIS_XX", "1003_DFA_FEA_XX"]
    tree.media(*(f"VideoFlash/{name}.flv" for name in videos), *(f"AudioWAV/{name}.wav" for name in videos[:3]))
    tree.media("AudioWAV/1004_DFA_HAP_XX.wav")
    silent = tree.root / "AudioWAV/1002_DFA_DIS_XX.wav"
    write_wav(silent, np.zeros(RATE // 2), RATE)
    whole = (tree.root / "VideoFlash/1003_DFA_FEA_XX.flv").read_bytes()
    (tree.root / "VideoFlash/1003_DFA_FEA_XX.flv").unlink()  # a link of the tiny one, which stays
    (tree.root / "VideoFlash/1003_DFA_FEA_XX.flv").write_bytes(whole[:200])
    grey = np.full((12, 96, 96, 3), 99, np.uint8)
    encode(tree.root / "VideoFlash/1005_DFA_SAD_XX.flv", grey, 0.3 * np.sin(np.arange(RATE // 2) / 5), rate=RATE)
    return {
        "1002_DFA_DIS_XX.flv": "is silent (silent)",
        "1003_DFA_FEA_XX.flv": "cannot be read: ",
        "1004_DFA_HAP_XX.flv": "is not there",
        "1005_DFA_SAD_XX.flv": "no face is found in 5 frames",
    }


@pytest.mark.slow
def test_verify_tells_every_fault_and_every_count_that_differs(tree, capsys):
    reasons = broken_crema_d(tree)
    with pytest.raises(SystemExit) as stopped:
        tree.write("crema-d", verify=True, workers=1, detector="haar")
    assert stopped.value.code == 1
    with open(tree.root.parent / "manifest.faults.csv") as file:
        found = {Path(row["path"]).name: row["reason"] for row in csv.DictReader(file)}
    assert found.keys() == reasons.keys() and all(found[name].startswith(reason) for name, reason in reasons.items())
    told = capsys.readouterr().err
    table = {tuple(line.split()) for line in told.splitlines()}
    assert {("clips", "7442", "7", "6"), ("class", "HAP", "1271", "1", "0"), ("class", "NEU", "1087", "1", "1")} <= table
    assert {("fold", "1", "1463", "5", "4"), ("fold", "5", "not", "known", "1", "1")} <= table
    assert "4 faults, all in" in told and "counts differ: clips, class ANG, class DIS" in " ".join(told.split())


@pytest.mark.slow
def test_verify_is_content_with_what_is_published(tree, monkeypatch, capsys):
    tree.media("VideoFlash/1001_DFA_ANG_XX.flv", "VideoFlash/1019_IEO_SAD_HI.flv")
    published = {"clips": 2, "histogram": {"ANG": 1, "SAD": 1}, "by_fold": {"1": 1, "2": 1}}
    monkeypatch.setitem(datasets(), "crema-d", replace(find_dataset("crema-d"), **published))
    tree.write("crema-d", verify=True, workers=1, detector="haar")
    assert "differ" not in capsys.readouterr().err
    assert (tree.root.parent / "manifest.faults.csv").read_text() == "path,reason\n"
