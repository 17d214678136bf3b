"""Sources of pre-training: no labels; who speaks is the subject where it is known."""

import json


def rows(tree, name, *columns):
    found = tree.manifest(name, *columns)
    assert tree.settings is None and {label for _, label, *_ in found} == {None}
    return [(path, *values) for path, _, *values in found]


def test_voxceleb2(tree):
    tree.media("dev/mp4/id00012/21Uxsk56VDQ/00001.mp4", "dev/aac/id00012/21Uxsk56VDQ/00001.m4a")
    tree.media("dev/mp4/id09272/u7VNkYraCw0/00027.mp4")
    assert rows(tree, "voxceleb2", "audio_path", "subject") == [
        ("dev/mp4/id00012/21Uxsk56VDQ/00001.mp4", "dev/aac/id00012/21Uxsk56VDQ/00001.m4a", "id00012"),
        ("dev/mp4/id09272/u7VNkYraCw0/00027.mp4", None, "id09272"),
    ]


def test_cn_celeb(tree):
    tree.media("CN-Celeb-AV/id00010/interview/video-01-001.mp4", "news/s00001/s00001_00001.mp4", "speech/other.mp4")
    assert rows(tree, "cn-celeb", "subject") == [
        ("CN-Celeb-AV/id00010/interview/video-01-001.mp4", "id00010"),
        ("news/s00001/s00001_00001.mp4", "s00001"),
        ("speech/other.mp4", None),
    ]


def test_mer2024_unlabelled(tree):
    tree.media("video-unlabeled/samplenew3_00000001.mp4", "video-labeled/samplenew_00000000.mp4")
    assert rows(tree, "mer24-unlabelled") == [("video-unlabeled/samplenew3_00000001.mp4",)]


def test_avspeech(tree):
    tree.text("avspeech_train.csv", "-0zLfUsDXCk,20.0,25.5,0.5,0.4", "--9a1XgVTys,1.0,4.0,0.5,0.4", "gone_gone_x,1,2,0.5,0.5")
    tree.media("videos/-0zLfUsDXCk.mp4")
    assert rows(tree, "avspeech", "start", "end", "subject") == [("videos/-0zLfUsDXCk.mp4", 20.0, 25.5, "-0zLfUsDXCk")]


def test_avspeech_cut_already(tree):
    tree.media("xac/-0zLfUsDXCk_20.000000_25.500000.mp4", "xac/-0zLfUsDXCk_30.000000_33.000000.mp4")
    found = rows(tree, "avspeech", "start", "subject")
    assert found[0] == ("xac/-0zLfUsDXCk_20.000000_25.500000.mp4", None, "-0zLfUsDXCk") and len(found) == 2


def test_celebv_hq(tree):
    clip = {"ytb_id": "M2Ohb0FAaJU", "duration": {"start_sec": 81.62, "end_sec": 86.17}, "bbox": {"top": 0, "bottom": 0.8}}
    other = clip | {"ytb_id": "-aaaaaaaaaa"}
    listed = {"M2Ohb0FAaJU_1": clip, "M2Ohb0FAaJU_2": clip, "-aaaaaaaaaa_0": other, "gone": clip | {"ytb_id": "gone"}}
    tree.text("celebvhq_info.json", json.dumps({"clips": listed}))
    tree.media("cut/M2Ohb0FAaJU_1.mp4", "whole/-aaaaaaaaaa.mp4")
    assert rows(tree, "celebv-hq", "start", "end", "subject") == [
        ("whole/-aaaaaaaaaa.mp4", 81.62, 86.17, "-aaaaaaaaaa"),
        ("cut/M2Ohb0FAaJU_1.mp4", None, None, "M2Ohb0FAaJU"),
    ]
