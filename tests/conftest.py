"""Small real media files, made once a session."""

from fractions import Fraction

import numpy as np
import pytest
from media_files import RATE, click, counted_frames, write_wav

from avfmae.data.demo import encode


@pytest.fixture(scope="session")
def media(tmp_path_factory):
    """name -> path."""
    root, files = tmp_path_factory.mktemp("media"), {}
    rng = np.random.default_rng(0)
    speech = 0.1 * rng.standard_normal(round(3.2 * RATE))

    def make(name, *args, **kwargs):
        files[name.replace(".", "_")] = str(root / name)
        encode(root / name, *args, **kwargs)

    make("good.mp4", counted_frames(80), speech, rate=RATE)
    make("good.mkv", counted_frames(80), speech, rate=RATE)
    make("good.flv", counted_frames(80), speech, rate=RATE)
    make("good.mpg", counted_frames(80), speech, rate=RATE)
    make("good.avi", counted_frames(80), speech, rate=RATE)
    make("click.mp4", counted_frames(100), click(1.5, 4.0), rate=RATE)
    make("click.mpg", counted_frames(100), click(1.5, 4.0), rate=RATE)
    make("silent.mp4", counted_frames(80), None)
    make("short_sound.mp4", counted_frames(80), click(0.2, 0.9), rate=RATE)
    make("short.mp4", counted_frames(20), click(0.2, 0.8), rate=RATE)
    make("slow.mp4", counted_frames(48), speech, fps=15, rate=RATE)
    make("fast.mp4", counted_frames(300), speech, fps=100, rate=RATE)
    make("ntsc.mp4", counted_frames(90), speech, fps=Fraction(30000, 1001), rate=RATE)
    make(
        "decord_fails.mp4", counted_frames(80, 64, 96), speech, rate=RATE
    )  # at this size decord 3.4 miscounts its channels
    make("odd_size.mp4", counted_frames(80, 54, 178), np.stack([speech, -0.5 * speech]), rate=48_000)
    make("telephone.avi", counted_frames(80), speech[:25_600], rate=8_000)
    good = (root / "good.mp4").read_bytes()
    bad = {
        "empty.mp4": b"",
        "truncated.mp4": good[: len(good) // 2],
        "text.mp4": b"this is no video\n" * 50,
        "truncated.flv": (root / "good.flv").read_bytes()[: len((root / "good.flv").read_bytes()) // 3],
    }
    for name, content in bad.items():
        files[name.replace(".", "_")] = str(root / name)
        (root / name).write_bytes(content)
    files["missing"] = str(root / "missing.mp4")

    write_wav(root / "sound.wav", click(1.5, 4.0, 16_000)[0], 16_000)
    files["sound_wav"] = str(root / "sound.wav")
    return files
