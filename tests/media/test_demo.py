"""The drawn data set is what it claims: expression and excitement are seen and heard, and the files are real."""

import numpy as np
import pytest

from avfmae.data.manifest import read_manifest
from avfmae.data.sources import open_clip
from avfmae.datasets.drawn import EMOTIONS, FPS, RATE, SECONDS, VOICES, DemoSet, Identity, draw_clip, make_demo_set, voice
from avfmae.demo import demo, expressions
from avfmae.options import DemoConfig


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
    a, b, c = (open_clip(clip.path).frames([0, 10]) for clip in (clips[3], other[3], clips[4]))
    assert difference(a, b) < 0.25 * difference(a, c)


def pitch(sound):
    """Hz, of the loudest 100 ms: the highest peak of the autocorrelation between 70 and 500 Hz."""
    start = max(range(0, len(sound) - 1600, 160), key=lambda k: np.square(sound[k : k + 1600]).sum())
    window = sound[start : start + 1600]
    lags = np.correlate(window, window, "full")[len(window) :]
    return RATE / (np.argmax(lags[RATE // 500 : RATE // 70]) + RATE // 500 + 1)


def spoken(who, expression, excitement, seeds=8):
    return [voice(who, expression, excitement, generator(1, s))[0] for s in range(seeds)]


def test_excitement_is_heard():
    who = Identity.draw(generator(0, 0))
    calm, excited = (np.mean([np.std(sound) for sound in spoken(who, "smile", e)]) for e in (0.0, 1.0))
    assert excited > 1.3 * calm


def test_expressions_are_heard_as_melody():
    who, half = Identity.draw(generator(0, 0)), round(SECONDS * RATE / 2)
    rise = {
        name: np.median([np.log2(pitch(sound[half:]) / pitch(sound[:half])) for sound in spoken(who, name, 0.0)])
        for name in VOICES
    }
    assert rise["frown"] < rise["smile"] - 0.1 and rise["wide"] > rise["smile"] + 0.1


def drawn(tmp_path, who, *emotions):
    """Clips of one person, drawn with the same dice."""
    for emotion in emotions:
        draw_clip(tmp_path / f"{emotion}.mp4", who, emotion, generator(2, 2))
    return [open_clip(str(tmp_path / f"{emotion}.mp4")) for emotion in emotions]


@pytest.mark.parametrize("pair", [("content", "joyful"), ("sad", "angry"), ("surprised", "afraid")], ids="/".join)
def test_excitement_is_seen_in_the_skin(pair, tmp_path):
    calm, excited = (
        clip.frames(range(0, 18, 4))[:, 40:56, 40:56].mean((0, 1, 2))
        for clip in drawn(tmp_path, Identity.draw(generator(0, 3)), *pair)
    )
    assert excited[0] / excited[1] > 1.08 * calm[0] / calm[1]


def test_expressions_are_seen_and_the_mouth_follows_the_sound(tmp_path):
    clips = drawn(tmp_path, Identity.draw(generator(0, 3)), "content", "sad", "surprised")
    frames = [clip.frames(range(18)).astype(float) for clip in clips]
    assert min(difference(frames[a], frames[b]) for a, b in ((0, 1), (0, 2), (1, 2))) > 3
    sound = clips[1].sound(0, SECONDS)
    loud = np.array([np.abs(sound[int(i / FPS * RATE) :][:1280]).mean() for i in range(18)])
    darkness = -np.percentile(frames[1][:, 58:90, 32:64].reshape(18, -1), 15, axis=1)
    assert np.corrcoef(loud, darkness)[0, 1] > 0.2


def test_calm_and_excited_are_one_expression():
    """Classes stand in pairs: a smile, a frown, wide eyes."""
    excitement_wrong = np.kron(np.eye(3), [[0, 5], [5, 0]])
    expression_wrong = np.roll(np.eye(6), 2, axis=1)
    for confusion, share in ((np.eye(6), 1), (excitement_wrong, 1), (expression_wrong, 0), (np.ones((6, 6)), 1 / 3)):
        result = {"classes": list(EMOTIONS), "summary": {"last": {"pooled": {"confusion": confusion.tolist()}}}}
        assert expressions(result) == pytest.approx(share)


def test_a_wrong_member_is_named_before_anything_is_drawn(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="preset: got 'hicma', expected one of"):
        demo(DemoConfig(tmp_path / "demo", "hicma"))
    assert not list(tmp_path.iterdir())
    asked = []
    monkeypatch.setattr("avfmae.demo.draw", lambda run: asked.append(run.model) or 1 / 0)
    for name in ("hicmae", "svfap"):
        with pytest.raises(ZeroDivisionError):
            demo(DemoConfig(tmp_path / "demo", name))
    assert asked == ["hicmae_base", "svfap"]
