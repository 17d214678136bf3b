"""The page of what the model sees: a picture a clip that can be read, a reason for each that cannot, and the facts beside."""

import io
import re

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from avfmae.config import ModelConfig
from avfmae.data.manifest import read_manifest
from avfmae.data.prepare import PrepareConfig, prepare
from avfmae.viz.inspection import InspectConfig, clips_table, inspect, inspect_clip

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def prepared(media, tmp_path_factory):
    folder = tmp_path_factory.mktemp("inspected")
    lines = ["path", *(media[n] for n in ("good_mp4", "silent_mp4", "click_mp4", "empty_mp4"))]
    (folder / "clips.csv").write_text("\n".join(lines))
    return prepare(PrepareConfig(folder / "clips.csv", folder / "set", detector="precropped", size=64)).parent


def test_single_videos_good_and_bad(media, tmp_path):
    names = ("good_mp4", "good_mpg", "silent_mp4", "short_mp4", "truncated_mp4", "empty_mp4", "text_mp4", "missing")
    path = inspect(InspectConfig(tuple(media[n] for n in names), tmp_path, preset="tiny"))
    text = path.read_text()
    assert len(list((tmp_path / "pictures").iterdir())) == text.count("<img") == 4
    for name in names:
        assert media[name] in text
    for words in ("the file is empty", "no such file", "no readable media file", "no-audio"):
        assert words in text
    picture = np.asarray(Image.open(tmp_path / "pictures" / "clip-000000.png").convert("RGB"))
    assert picture.std() > 20  # something is drawn


def test_a_set_is_sampled_and_summed_up(prepared, tmp_path):
    text = inspect(InspectConfig((prepared,), tmp_path, preset="tiny", clips=2)).read_text()
    assert text.count("<img") == 2 and "3 clips, 0.00 hours" in text
    assert re.search(r"no-audio</td><td>1<", text) and "set aside: the file is empty" in text


def test_what_is_shown_is_what_the_model_gets(prepared):
    cfg = ModelConfig.preset("tiny")
    clips = read_manifest(prepared / "manifest.csv")
    seen = inspect_clip(clips[2], cfg, 0.3)
    assert seen.frames.shape == (16, 64, 64, 3) and seen.spectrogram.shape == (256, 128)
    assert np.allclose(np.diff(seen.times), 0.16, atol=0.011) and seen.span[0] == pytest.approx(seen.times[0])
    heard = np.flatnonzero(np.nan_to_num(seen.spectrogram, nan=-99).max(1) > -8)
    assert abs(seen.span[0] + heard[0] / 100 - 1.5) < 0.03  # the click is drawn where it is heard
    assert np.isnan(inspect_clip(clips[1], cfg, 0.3).spectrogram).all()


def test_where_nothing_can_be_read_each_reason_is_told(media, tmp_path):
    (tmp_path / "t.mp4").write_text("hello\n")
    with pytest.raises(ValueError, match=r"^\S*t\.mp4: .*no readable media file"):
        inspect(InspectConfig((tmp_path / "t.mp4",), tmp_path / "out", preset="tiny"))
    with pytest.raises(ValueError, match=r"^none of the 2 clips can be read: \S*: the file is empty.*; \S*: .*no such file"):
        inspect(InspectConfig((media["empty_mp4"], tmp_path / "missing.mp4"), tmp_path / "out", preset="tiny"))
    assert not (tmp_path / "out").exists()


def test_wrong_sources_are_named(tmp_path):
    with pytest.raises(ValueError, match="give videos, a prepared set"):
        inspect(InspectConfig((), tmp_path))
    with pytest.raises(ValueError, match="holds no videos"):
        inspect(InspectConfig((tmp_path,), tmp_path / "out"))


def test_the_table_shows_the_clips_names_on_80_columns():
    """Whatever the folder's length, and beside columns that do not break."""
    facts = {"frames": "1234", "fps": "29.97", "seconds": "12.34", "window": "10.24 to 12.80 s", "drift": "-0.123"}
    rows = [{"clip": f"/data/{'folder/' * 20}{name}.mp4", **facts, "flags": "no-face silent"} for name in ("anna-07", "berta-12")]
    console = Console(file=io.StringIO(), width=80)
    console.print(clips_table(rows))
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= 80 and "-0.123" in text
    cells = [line.split("│")[1].strip() for line in text.splitlines() if "│" in line]
    assert "".join(cells) == "anna-07.mp4berta-12.mp4"
