"""The drawn data set is what it claims: emotions are seen and heard, the mouth follows the sound, the files are real."""

import numpy as np
import pytest

from avfmae.data.manifest import read_manifest
from avfmae.data.sources import open_clip
from avfmae.datasets.drawn import EMOTIONS, FPS, RATE, SECONDS, DemoSet, Identity, draw_clip, make_demo_set, voice


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
    a, b, c = (open_clip(clip.path).frames([0, 12]) for clip in (clips[3], other[3], clips[4]))
    assert difference(a, b) < 0.25 * difference(a, c)


def pitch(sound):
    """Hz: where the autocorrelation between 70 and 500 Hz is largest."""
    power = np.abs(np.fft.rfft(sound, 2 * len(sound))) ** 2
    correlation = np.fft.irfft(power)
    lags = np.arange(RATE // 500, RATE // 70)
    return RATE / lags[correlation[lags].argmax()]


def test_excitement_is_heard():
    who = Identity.draw(generator(0, 0))
    sounds = [[voice(who, "smile", e, generator(1, s))[0] for s in range(4)] for e in (0.0, 1.0)]
    calm, excited = (np.mean([np.std(sound) for sound in some]) for some in sounds)
    assert excited > 1.3 * calm
    low, high = (np.mean([pitch(sound) for sound in some]) for some in sounds)
    assert high > 1.1 * low


def test_the_expression_is_heard_in_the_melody():
    """The same dice give a pitch that falls with a frown and rises with wide eyes."""
    who, third = Identity.draw(generator(0, 0)), round(SECONDS * RATE) // 3

    def rise(expression):
        sounds = [voice(who, expression, 0.0, generator(1, s))[0] for s in range(4)]
        return np.mean([np.log2(pitch(sound[-third:]) / pitch(sound[:third])) for sound in sounds])

    assert rise("frown") < rise("smile") - 0.1 < rise("wide") - 0.2


@pytest.mark.parametrize("pair", [("content", "joyful"), ("sad", "angry"), ("surprised", "afraid")], ids="/".join)
def test_emotions_are_seen(pair, tmp_path):
    """The same dice give another picture for every emotion, and those of one expression are more alike."""
    who, frames = Identity.draw(generator(0, 3)), []
    for emotion in (*pair, "sad" if pair[0] != "sad" else "content"):
        draw_clip(tmp_path / f"{emotion}.mp4", who, emotion, generator(2, 2))
        frames.append(open_clip(str(tmp_path / f"{emotion}.mp4")).frames(range(0, 18, 3)))
    assert 0.3 < difference(frames[0], frames[1]) < difference(frames[0], frames[2])


def test_the_mouth_follows_the_sound(tmp_path):
    count = round(SECONDS * FPS)
    draw_clip(tmp_path / "sad.mp4", Identity.draw(generator(0, 3)), "sad", generator(2, 2))
    sound = open_clip(str(tmp_path / "sad.mp4")).sound(0, SECONDS)
    frames = open_clip(str(tmp_path / "sad.mp4")).frames(range(count)).astype(float)
    loud = np.array([np.abs(sound[int(i / FPS * RATE) :][:640]).mean() for i in range(count)])
    mouth = frames[:, 58:84, 32:64]
    darkness = -np.percentile(mouth.reshape(count, -1), 15, axis=1)
    assert np.corrcoef(loud, darkness)[0, 1] > 0.2
