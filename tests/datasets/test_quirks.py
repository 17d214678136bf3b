"""What is amiss in trees of any kind: encodings, capitals, rows that are there twice, links, archives still packed."""

import pytest

SHEET = [
    ("Subject", "Filename", "OnsetFrame", "OffsetFrame", "Estimated Emotion"),
    ("1", "EP02_01f", "1", "3", "Happiness"),
    ("02", "EP09_01", "1", "3", "disgust "),
]


def test_suffixes_in_capitals(tree):
    for path in ("AudioWAV/1001_DFA_ANG_XX.wav", "VideoFlash/1001_DFA_ANG_XX.flv"):
        tree.media(path)
        (tree.root / path).rename((tree.root / path).with_suffix(path[-4:].upper()))
    row = ("VideoFlash/1001_DFA_ANG_XX.FLV", "ANG", "AudioWAV/1001_DFA_ANG_XX.WAV")
    assert tree.manifest("crema-d", "audio_path") == [row]


def test_a_path_that_an_annotation_gives_may_end_in_capitals(tree):
    tree.text("train-label.csv", "name,discrete", "a,happy")
    tree.text("test1-label.csv", "name,discrete", "b,sad")
    tree.media("train/a.mp4", "test1/b.mp4")
    (tree.root / "train/a.mp4").rename(tree.root / "train/a.MP4")
    assert tree.manifest("mer-multi", "split") == [("train/a.MP4", "happy", "train"), ("test1/b.mp4", "sad", "test")]


def test_linked_folders_are_followed(tree):
    tree.media("elsewhere/Actor_01/01-01-05-01-01-01-01.mp4")
    (tree.root / "elsewhere").rename(tree.root.parent / "elsewhere")
    (tree.root / "Video_Speech").symlink_to(tree.root.parent / "elsewhere")
    assert tree.manifest("ravdess") == [("Video_Speech/Actor_01/01-01-05-01-01-01-01.mp4", "angry")]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_encodings_and_line_ends_of_annotations(tree, encoding):
    folder = "Session1/dialog"
    tree.media(f"{folder}/avi/DivX/Ses01F_impro01.avi")
    lines = ["[1.5 - 2.5]\tSes01F_impro01_F000\tang\t[2.5, 2.5, 2.5]", "C-F1:\tAnger;\t(d\u00e9j\u00e0 vu)"]
    tree.place(f"{folder}/EmoEvaluation/Ses01F_impro01.txt").write_bytes("\r\n".join(lines).encode(encoding))
    assert tree.manifest("iemocap", "start") == [(f"{folder}/avi/DivX/Ses01F_impro01.avi", "angry", 1.5)]


@pytest.mark.parametrize("kind", ["xlsx", "csv"])
def test_sheets_with_capitals_spaces_and_a_row_twice(tree, kind):
    rows = [*SHEET, SHEET[1]]
    if kind == "csv":
        tree.text("CASME2-coding-20140508.csv", *map(",".join, rows))
    else:
        tree.sheet("CASME2-coding-20140508.xlsx", *rows)
    for name in ("sub01/EP02_01f", "sub02/EP09_01"):
        tree.images(name, 1, 3)
    assert tree.manifest("casme2") == [("sub01/EP02_01f", "positive"), ("sub02/EP09_01", "negative")]
    assert tree.faults == ["sub01/EP02_01f,is annotated twice"]


@pytest.mark.parametrize("note", [("checked twice",), (None, None, None, None, "2")], ids=["text", "count"])
def test_footnotes_of_a_sheet_are_no_rows(note, tree):
    tree.sheet("CASME2-coding-20140508.xlsx", *SHEET, (), note)
    tree.images("sub01/EP02_01f", 1, 3)
    tree.images("sub02/EP09_01", 1, 3)
    assert tree.manifest("casme2") == [("sub01/EP02_01f", "positive"), ("sub02/EP09_01", "negative")]
    assert not tree.faults


def test_a_row_without_a_label_is_no_footnote(tree):
    tree.text("train-label.csv", "name,discrete", "a,")
    tree.text("test1-label.csv", "name,discrete", "b,sad")
    with pytest.raises(ValueError, match=r"train/a\.mp4: its label is '', expected one of worried"):
        tree.manifest("mer-multi")


def test_a_clip_with_two_labels_or_on_both_sides_is_refused(tree):
    tree.images("2_ClipsforFaceCrop/Crime/Angry/0001", 1, 2)
    tree.text("4_setups/All_scenes/train_All.csv", "Crime/Angry/0001 Angry")
    tree.text("4_setups/All_scenes/test_All.csv", "Crime/Angry/0001 Angry")
    with pytest.raises(ValueError, match="Crime/Angry/0001: is annotated twice, as Angry train and as Angry test"):
        tree.manifest("ferv39k")
    tree.text("4_setups/All_scenes/test_All.csv", "Crime/Angry/0001 Fear")
    with pytest.raises(ValueError, match="as Angry train and as Fear test"):
        tree.manifest("ferv39k")


def test_a_folder_without_images_is_no_clip(tree):
    tree.images("HS/s01/micro/negative/s01_ne_01", 1, 2, "{}.bmp")
    (tree.root / "HS/s2/micro/surprise/s2_su_01").mkdir(parents=True)
    assert tree.manifest("smic") == [("HS/s01/micro/negative/s01_ne_01", "negative")]
    assert tree.faults == ["HS/s2/micro/surprise/s2_su_01,holds no images"]


def test_the_archive_in_a_folder_of_its_name(tree):
    tree.media("CREMA-D-master/VideoFlash/1001_DFA_ANG_XX.flv")
    assert tree.manifest("crema-d") == [("CREMA-D-master/VideoFlash/1001_DFA_ANG_XX.flv", "ANG")]


@pytest.mark.parametrize("name", ["crema-d", "mafw", "dfew", "casme2", "voxceleb2"])
def test_an_archive_that_is_not_unpacked_is_named(tree, name):
    tree.text("CREMA-D.zip")
    with pytest.raises(FileNotFoundError, match=r"Not unpacked yet: CREMA-D\.zip"):
        tree.manifest(name)


def test_any_videos_are_mer2024_unlabelled(tree):
    tree.media("somewhere/1.mp4")
    assert tree.manifest("mer24-unlabelled") == [("somewhere/1.mp4", None)]


def test_clips_of_avcaffe_without_a_rating_are_left_out(tree):
    tree.media("videos/shorter_segments/aiim001/task_1/a.avi", "videos/shorter_segments/aiim003/task_2/b.avi")
    tree.text("ground_truths/arousal.txt", "aiim003_task_2, calm")
    assert tree.manifest("avcaffe-arousal", "split") == [("videos/shorter_segments/aiim003/task_2/b.avi", "Calm", "train")]
    assert "arousal.txt says nothing of aiim001_task_1" in tree.faults[0]


def test_numbers_of_werewolf_xl_are_never_guessed(tree):
    tree.media("01_01_1.mp4", "07_02_3.mp4")
    tree.text("labels.csv", "clip;valence;arousal;dominance", "01_01_1;1,0;0,25;0,5")  # decimal commas
    with pytest.raises(ValueError, match="line 2: got '01_01_1;1,0;0,25;0,5', expected <game_player_clip> and three numbers"):
        tree.manifest("werewolf-xl")
    tree.text("labels.csv", "clip,valence,arousal,dominance", "01_01_1,1,nan,0.5", "07_02_3,1,2,3")
    assert tree.manifest("werewolf-xl") == [("07_02_3.mp4", "2 1 3")]
    assert "its numbers are 1 nan 0.5" in tree.faults[0]


def test_classes_that_lack_a_label_are_refused(tree):
    for k in range(1, 6):
        tree.text(f"split/compound/no_caption/set_{k}/train.txt", *(f"0000{i}.mp4 anger_fear" for i in range(1, 6) if i != k))
        tree.text(f"split/compound/no_caption/set_{k}/test.txt", f"0000{k}.mp4 anger_fear")
    with pytest.raises(ValueError, match="classes: got anger, fear, but clips are labelled anger_fear too"):
        tree.manifest("mafw-43", classes=("anger", "fear"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"root": None}, "root: none is given, expected the folder of CREMA-D"), ({"out": "m.json"}, "ends in .csv or .parquet")],
    ids=["no root", "suffix"],
)
def test_arguments_that_would_do_nothing(tree, tmp_path, arguments, message):
    from avfmae.datasets.command import dataset
    from avfmae.options import DatasetConfig

    given = {"root": tree.root, "out": "m.csv"} | arguments
    with pytest.raises(ValueError, match=message):
        dataset(DatasetConfig("crema-d", given["root"], tmp_path / given["out"]))
