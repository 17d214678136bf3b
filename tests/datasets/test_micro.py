"""Micro-expressions: folders of frames, from onset to offset; at 25 nominal frames a second, frame 4 begins at 0.16 s."""

import pytest

THREE = ["negative", "positive", "surprise"]


def samm(tree, root=""):
    note = [(f"line {i} of the notes above the table",) for i in range(12)]
    header = (
        "Subject",
        "Filename",
        "Inducement Code",
        "Onset Frame",
        "Apex Frame",
        "Offset Frame",
        "Duration",
        "Estimated Emotion",
    )
    rows = [("006", "006_1_2", 1, 562, 565, 567, 6, "Anger"), (7, "007_3_1", 1, 11, 12, 13, 3, "Other"),
            ("036", "036_7_3", 1, 4, 5, 6, 3, "Fear"), ("037", "037_3_1", 1, 4, 5, 6, 3, "Happiness")]  # fmt: skip
    tree.sheet(f"{root}SAMM_Micro_FACS_Codes_v2.xlsx", *note, header, *rows)
    tree.images(f"{root}006/006_1_2", 560, 568, "006_{:05d}.jpg")
    tree.images(f"{root}007/007_3_1", 11, 13, "007_{}.jpg")
    tree.images(f"{root}036/036_7_3", 4, 6, "036_{}.jpg")
    tree.images(f"{root}037/037_3_1", 5, 6, "037_{}.jpg")


def casme2(tree, root="", folder="Cropped", name="reg_img{}.jpg"):
    rows = [
        ("Subject", "Filename", None, "OnsetFrame", "ApexFrame", "OffsetFrame", None, "Action Units", "Estimated Emotion"),
        ("01", "EP02_01f", None, 46, 59, 49, None, 12, "happiness"),
        (2, "EP09_01", None, 3, "/", 5, None, 4, "repression"),
        ("04", "EP12_01f", None, 50, 51, 40, None, 1, "surprise"),  # the offset before the onset
        ("26", "EP18_50", None, 1, 2, 3, None, 1, "fear"),
    ]
    tree.sheet(f"{root}CASME2-coding-20140508.xlsx", *rows)
    tree.images(f"{root}{folder}/sub01/EP02_01f", 46, 50, name)
    tree.images(f"{root}{folder}/sub02/EP09_01", 3, 5, name)
    tree.images(f"{root}{folder}/sub04/EP12_01f", 50, 52, name)


def smic(tree, root=""):
    tree.images(f"{root}HS/s01/micro/negative/s01_ne_01", 100, 102, "reg_image{}.bmp")
    tree.images(f"{root}HS/s03/micro/surprise/s3_sur_02", 100, 102, "image{}.bmp")
    tree.images(f"{root}HS/s20/micro/positive/s20_po_10", 100, 102, "image{}.bmp")


def test_samm(tree):
    samm(tree)
    assert tree.manifest("samm", "start", "end", "fold", "subject") == [
        ("006/006_1_2", "negative", 0.08, 0.32, "006", "006"),
        ("036/036_7_3", "negative", 0.0, 0.12, "036", "036"),
        ("037/037_3_1", "positive", None, None, "037", "037"),  # the onset is not there: the folder holds the expression
    ]
    assert tree.faults == ['037/037_3_1,"the sheet says frames 4 to 6, the folder holds frames 5 to 6"']
    assert tree.settings["classes"] == THREE and tree.settings["data"] == {"sampling": "uniform"}
    assert tree.settings["select"] == "UF1" and tree.settings["folds"] == "given"


@pytest.mark.parametrize("folder", ["Cropped", "CASME2_RAW_selected"])
def test_casme2(tree, folder):
    casme2(tree, folder=folder)
    assert tree.manifest("CASME II", "start", "end", "fold", "subject") == [
        (f"{folder}/sub01/EP02_01f", "positive", 0.0, 0.16, "sub01", "sub01"),
        (f"{folder}/sub02/EP09_01", "negative", 0.0, 0.12, "sub02", "sub02"),
        (f"{folder}/sub04/EP12_01f", "surprise", None, None, "sub04", "sub04"),
    ]
    assert tree.settings["classes"] == THREE and len(tree.faults) == 1


def test_smic(tree):
    smic(tree)
    assert tree.manifest("smic", "fold", "subject") == [
        ("HS/s01/micro/negative/s01_ne_01", "negative", "s01", "s01"),
        ("HS/s20/micro/positive/s20_po_10", "positive", "s20", "s20"),
        ("HS/s03/micro/surprise/s3_sur_02", "surprise", "s03", "s03"),
    ]


def test_casme3(tree):
    rows = [
        ("Subject", "Filename", "Onset", "Apex", "Offset", "AU", "Objective class", "emotion"),
        ("spNO.1", "a", 3, 5, 6, "4", "II", "disgust"),
        ("spNO.1", "a", 8, 9, 10, "1", "III", "Surprise"),  # two expressions in one video
        ("spNO.216", "m", 40, 41, 42, "12", "I", "happy"),  # beyond the end of the video
        ("spNO.2", "b", 1, 2, 3, "20", "I", "others"),
    ]
    tree.sheet("annotation/cas(me)3_part_A_ME_label_JpgIndex_v2.xlsx", *rows)
    tree.images("part_A/data/part_A/spNO.1/a/color", 1, 12)
    tree.images("part_A/data/part_A/spNO.216/m/color", 1, 4)
    tree.images("part_A/data/part_A/spNO.2/b/color", 1, 4)
    path = "part_A/data/part_A/spNO.1/a/color"
    expected = [(path, "negative", 0.08, 0.24, "spNO.1"), (path, "surprise", 0.28, 0.4, "spNO.1")]
    assert tree.manifest("CAS(ME)^3", "start", "end", "subject") == [*expected]
    assert [line.partition(",")[2].strip('"') for line in tree.faults] == [
        "the sheet says frames 40 to 42, the folder holds frames 1 to 4"
    ]
    assert [label for _, label in tree.manifest("casme3-4")] == ["negative", "surprise", "others"]
    assert tree.settings["classes"] == [*THREE, "others"]


def test_mmew(tree):
    header = ("Subject", "Filename", "OnsetFrame", "ApexFrame", "OffsetFrame", "Action Units", "Estimated Emotion", "remarks")
    rows = [(1, "S01-01-001", 1, 2, 3, "12", "happiness", None), (3, "S03-02-001", 2, 3, 4, "4", "Anger", None),
            (30, "S30-06-001", 1, 2, 3, "4", "others", None)]  # fmt: skip
    tree.sheet("MMEW_Micro_Exp.xlsx", header, *rows)
    for name in ("happiness/S01-01-001", "anger/S03-02-001", "others/S30-06-001"):
        tree.images(f"Micro_Expression/{name}", 1, 4)
    assert tree.manifest("mmew", "start", "end", "fold", "subject") == [
        ("Micro_Expression/happiness/S01-01-001", "positive", 0.0, 0.12, "S01", "S01"),
        ("Micro_Expression/anger/S03-02-001", "negative", 0.04, 0.16, "S03", "S03"),
    ]
    assert len(tree.manifest("mmew-4")) == 3


def test_megc2019(tree):
    samm(tree, "SAMM/")
    casme2(tree, "CASME2/", "", "img{}.jpg")
    smic(tree, "SMIC_all_cropped/")
    rows = tree.manifest("megc2019", "fold", "dataset")
    assert len(rows) == 9 and tree.settings["classes"] == THREE and tree.settings["folds"] == "given"
    assert [rows[i] for i in (0, 3, 6)] == [
        ("SAMM/006/006_1_2", "negative", "samm-006", "samm"),
        ("CASME2/sub01/EP02_01f", "positive", "casme2-sub01", "casme2"),
        ("SMIC_all_cropped/HS/s01/micro/negative/s01_ne_01", "negative", "smic-s01", "smic"),
    ]
