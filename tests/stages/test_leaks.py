"""What a model must not learn from is refused by name: the held-out clip, its recording, its subject, a copy of its file."""

import shutil
from dataclasses import replace

import pytest
from PIL import Image

from avfmae.data.clip import Clip
from avfmae.data.sources.frames import FrameFolder
from avfmae.recipes import recipe_folder
from avfmae.stages.leaks import leaks, refuse_leaks
from avfmae.stages.psi import LabelMap, balance, merge


@pytest.fixture
def clips(tmp_path):
    """A held-out clip, and clips that are no leak: another file of the same size, and another set's subject of the same name."""
    for name, content in (("held", b"held-out"), ("other", b"trained!"), ("third", b"third")):
        (tmp_path / f"{name}.mp4").write_bytes(content)
    for name, content in (("held", b"spoken"), ("other", b"yawned")):
        (tmp_path / f"{name}.wav").write_bytes(content)
    sounds = [str(tmp_path / f"{name}.wav") for name in ("held", "other")]
    held = Clip(0, str(tmp_path / "held.mp4"), sounds[0], start=1.0, end=2.0, subject="anna", dataset="target")
    others = [
        Clip(7, str(tmp_path / "other.mp4"), sounds[1], subject="ben"),
        Clip(8, str(tmp_path / "third.mp4"), subject="anna", dataset="b"),
    ]
    return held, others


def same_clip(folder, held):
    return held, "held.mp4 is a held-out clip"


def another_way_to_the_file(folder, held):
    (folder / "link").symlink_to(folder)
    return Clip(1, str(folder / "link" / "held.mp4"), start=1.0, end=2.0), "held.mp4 is a held-out clip"


def another_segment(folder, held):
    return Clip(1, held.path, start=2.0, end=3.0), "held.mp4: another segment of this recording is held out"


def same_subject(folder, held):
    (folder / "new.mp4").write_bytes(b"new")
    return Clip(1, str(folder / "new.mp4"), subject="anna", dataset="target"), "new.mp4: subject anna is held out"


def same_subject_written_otherwise(folder, held):
    leak, _ = same_subject(folder, held)
    return replace(leak, subject="Anna ", dataset="TARGET"), "new.mp4: subject Anna  is held out"


def copy(folder, held):
    shutil.copy(held.path, folder / "renamed.mp4")
    return Clip(
        1, str(folder / "renamed.mp4"), subject="zoe", dataset="b"
    ), r"renamed.mp4 is a copy of a held-out clip \(.*held.mp4\)"


def its_sound(folder, held):
    """Other crops of the face, the same sound."""
    (folder / "crops.mp4").write_bytes(b"other crops")
    return Clip(1, str(folder / "crops.mp4"), held.audio_path), r"crops.mp4: its sound \(.*held.wav\) is a held-out clip's"


def a_copy_of_its_sound(folder, held):
    shutil.copy(held.audio_path, folder / "renamed.wav")
    leak, message = its_sound(folder, held)
    return replace(leak, audio_path=str(folder / "renamed.wav")), message.replace("held.wav", "renamed.wav")


def its_sound_of_the_recording(folder, held):
    leak, message = its_sound(folder, held)
    return replace(leak, audio_path=held.path), message.replace("held.wav", "held.mp4")


PLANTED = (
    same_clip, another_way_to_the_file, another_segment, same_subject, same_subject_written_otherwise, copy, its_sound,
    a_copy_of_its_sound, its_sound_of_the_recording,
)  # fmt: skip


@pytest.mark.parametrize("plant", PLANTED)
def test_a_planted_leak_is_refused_by_name(clips, tmp_path, plant):
    held, others = clips
    assert leaks(others, [held]) == {}
    leak, message = plant(tmp_path, held)
    with pytest.raises(ValueError, match=rf"1 of 3 clips belong to the target's evaluation[\s\S]*{message}"):
        refuse_leaks([*others, leak], [held], "refuse")
    assert refuse_leaks([*others, leak], [held], "exclude") == others


def test_a_sound_that_many_recordings_have_is_no_leak(tmp_path):
    for name in ("none", "nothing", "nil"):
        (tmp_path / f"{name}.wav").write_bytes(b"silence")
    held = [Clip(i, f"held{i}.mp4", str(tmp_path / "none.wav")) for i in range(2)]
    held += [Clip(2, "held2.mp4", str(tmp_path / "nothing.wav")), Clip(3, "held3.mp4", str(tmp_path / "nil.wav"))]
    assert leaks([Clip(5, "new.mp4", str(tmp_path / "none.wav"))], held) == {}


def test_folders_of_frames_are_known_by_their_contents(tmp_path):
    for name, colour in (("held", "red"), ("copy", "red"), ("other", "blue")):
        (tmp_path / name).mkdir()
        for i in range(2):
            Image.new("RGB", (8, 8), colour).save(tmp_path / name / f"{i}.png")
    held, *others = (Clip(i, str(tmp_path / name)) for i, name in enumerate(("held", "copy", "other")))
    assert list(leaks(others, [held])) == [1] and leaks(others, [held], contents=False) == {}


def test_folders_of_other_sizes_are_not_read(tmp_path, monkeypatch):
    """As many images, of fewer bytes: a set has thousands of such folders, and each has many images."""
    for name, size in (("held", 8), ("other", 64)):
        (tmp_path / name).mkdir()
        Image.new("RGB", (size, size)).save(tmp_path / name / "1.png")
    monkeypatch.setattr(FrameFolder, "digest", lambda self: pytest.fail(f"{self.path} is read"))
    held, other = (Clip(i, str(tmp_path / name)) for i, name in enumerate(("held", "other")))
    assert leaks([other], [held]) == {}


@pytest.mark.parametrize(("file", "classes"), [("label_map.toml", 13), ("label_map_micro.toml", 3)])
def test_hybrids_take_the_labels_of_the_named_data_sets(file, classes):
    from avfmae.datasets import datasets

    label_map = LabelMap.read(recipe_folder() / file)
    known = {one.corpus: one for one in reversed(datasets().values()) if one.classes}
    assert len(label_map.classes) == classes and set(label_map.sources) <= set(known)
    for name, labels in label_map.sources.items():
        assert set(labels) == set(known[name].classes)
    assert {hybrid for labels in label_map.sources.values() for hybrid in labels.values()} == set(label_map.classes)


def test_sources_are_balanced_by_temperature(tmp_path):
    from avfmae.data.manifest import write_manifest

    label_map = LabelMap(("x",), {"crema-d": {"a": "x"}, "small": {"b": "x"}})
    write_manifest(tmp_path / "CREMA_D.csv", [Clip(i, f"{i}.mp4", label="a") for i in range(90)])  # named by its file
    write_manifest(tmp_path / "other.csv", [Clip(i, f"s{i}.mp4", label="b", dataset="small") for i in range(10)])
    clips, sources = merge([tmp_path / "CREMA_D.csv", tmp_path / "other.csv"], label_map)
    for temperature, share in ((1.0, 0.9), (0.5, 0.75), (0.0, 0.5)):
        weights = balance(clips, sources, temperature)
        assert sum(weights[:90]) / sum(weights) == pytest.approx(share)
