"""The drawn data set is what it claims: the expression is not audible, the excitement not visible, the files are real."""

import numpy as np
import pytest

from avfmae.data.manifest import read_manifest
from avfmae.data.sources import open_clip
from avfmae.datasets.drawn import EMOTIONS, FPS, SECONDS, DemoSet, Identity, draw_clip, make_demo_set, voice


def generator(*key):
    return np.random.Generator(np.random.Philox(key=list(key)))


def difference(a, b):
    """Mean absolute difference in grey levels; x264 itself is not exact to the bit from run to run."""
    return np.abs(a.astype(int) - b).mean()


@pytest.mark.slow
def test_the_files_are_real_and_reproducible(tmp_path):
    what = DemoSet("set", first=5, people=2, labels={e: e for e in EMOTIONS})
    a, b = (make_demo_set(tmp_path / d, what, test_people=1) for d in "ab")
    clips = read_manifest(a)
    assert (
        len(clips) == 12
        and {c.split for c in clips if c.subject == "006"} == {"test"}
        and {c.split for c in clips if c.subject == "005"} == {"train"}
    )
    info = open_clip(clips[0].path).info
    assert len(info.times) == round(SECONDS * FPS) and info.has_audio
    other = read_manifest(b)
    a, b, c = (open_clip(clip.path).frames([0, 40]) for clip in (clips[3], other[3], clips[4]))
    assert difference(a, b) < 0.25 * difference(a, c)


def test_excitement_is_heard():
    who = Identity.draw(generator(0, 0))
    calm, excited = (np.mean([np.std(voice(who, e, generator(1, s))[0]) for s in range(4)]) for e in (0.0, 1.0))
    assert excited > 1.3 * calm


@pytest.mark.parametrize("pair", [("content", "joyful"), ("sad", "angry"), ("surprised", "afraid")], ids="/".join)
def test_excitement_is_not_seen(pair, tmp_path):
    """The same dice give the same picture, calm or excited, and another one with another expression."""
    who, frames = Identity.draw(generator(0, 3)), []
    for emotion in (*pair, "sad" if pair[0] != "sad" else "content"):
        draw_clip(tmp_path / f"{emotion}.mp4", who, emotion, generator(2, 2))
        frames.append(open_clip(str(tmp_path / f"{emotion}.mp4")).frames(range(0, 60, 5)))
    assert difference(frames[0], frames[1]) < 0.5 * difference(frames[0], frames[2])


def test_the_expression_is_not_heard_and_the_mouth_follows_the_sound(tmp_path):
    who, sounds = Identity.draw(generator(0, 3)), []
    for emotion in ("content", "sad", "surprised"):
        draw_clip(tmp_path / f"{emotion}.mp4", who, emotion, generator(2, 2))
        sounds.append(open_clip(str(tmp_path / f"{emotion}.mp4")).sound(0, 2.5))
    assert np.array_equal(sounds[0], sounds[1]) and np.array_equal(sounds[0], sounds[2])
    frames = open_clip(str(tmp_path / "sad.mp4")).frames(range(60)).astype(float)
    loud = np.array([np.abs(sounds[0][int(i / FPS * 16000) :][:640]).mean() for i in range(60)])
    mouth = frames[:, 58:84, 32:64]
    darkness = -np.percentile(mouth.reshape(60, -1), 15, axis=1)
    assert np.corrcoef(loud, darkness)[0, 1] > 0.2
