"""Features: the same alone, in batches and from workers; of the layers and regions that are asked for; in files that open."""

import csv
import json

import numpy as np
import pyarrow.parquet
import pytest
import safetensors.numpy
import torch

import avfmae
from avfmae.checkpoints import save_weights
from avfmae.cli import main
from avfmae.data.clip import Clip
from avfmae.data.config import DataConfig
from avfmae.inference.features import FeatureExtractor
from avfmae.models.finetuning import AVFMAEForFinetuning

NAMES = ("good_mp4", "odd_size_mp4", "fast_mp4", "silent_mp4", "short_mp4", "good_mpg")
DATA = DataConfig(stride=8)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return AVFMAEForFinetuning(avfmae.ModelConfig.preset("demo"), 3).eval()


@pytest.mark.parametrize("level", ["clip", "region", "token"])
def test_features_do_not_depend_on_batches(level, model, media):
    clips = [media[name] for name in NAMES]
    together = FeatureExtractor(model, DATA, level=level)(clips)
    again = FeatureExtractor(model, DATA, level=level, batch=4)(clips[::-1])
    for name, array in together.arrays.items():
        alone = [FeatureExtractor(model, DATA, level=level)([clip]).arrays[name][0] for clip in clips]
        assert np.abs(array - np.stack(alone)).max() < 1e-5 and np.abs(array - again.arrays[name][::-1]).max() < 1e-5
        assert np.abs(array[0] - array[1]).max() > 1e-3  # they are not all the same


@pytest.mark.slow
def test_features_do_not_depend_on_workers(model, media):
    clips = [media[name] for name in NAMES] + [media["empty_mp4"]]
    here, there = (FeatureExtractor(model, DATA)(clips, workers=n) for n in (0, 2))
    assert [c.path for c in there.clips] == clips[:-1] and [b.path for b in there.bad] == clips[-1:]
    for name, array in here.arrays.items():
        assert np.abs(array - there.arrays[name]).max() < 1e-5


@pytest.mark.exhaustive
def test_a_hundred_clips_are_the_same_however_they_are_read(model, media):
    """Alone, in batches, by this process and by others; twenty clips from each of five beginnings."""
    names = [name for name in media if name.startswith(("good", "click", "odd", "fast", "slow", "ntsc"))]
    clips = [Clip(i, media[names[i % len(names)]], start=0.2 * (i // 20)) for i in range(100)]
    alone = FeatureExtractor(model, DATA, batch=1)(clips)
    assert len(alone.clips) == 100
    for workers, batch in ((0, 8), (1, 8), (2, 7)):
        found = FeatureExtractor(model, DATA, batch=batch)(clips, workers=workers)
        assert [c.id for c in found.clips] == list(range(100))
        for name, array in found.arrays.items():
            assert np.abs(array - alone.arrays[name]).max() < 1e-5


def test_levels_and_layers(model, media):
    clips, cfg = [media["good_mp4"]], model.cfg

    def arrays(**options):
        return FeatureExtractor(model, DATA, **options)(clips).arrays

    regions = arrays(level="region", layers=range(cfg.depth))
    for name in ("video", "audio"):
        assert regions[name].shape == (1, getattr(cfg, name).regions, cfg.depth * cfg.width)
        assert arrays(level="token")[name].shape == (1, getattr(cfg, name).tokens, cfg.width)
        assert np.allclose(arrays(layers=(1, 0))[name], np.roll(regions[name].mean(1), cfg.width, 1), atol=1e-6)
        assert np.allclose(arrays(pool="max")[name], regions[name][..., -cfg.width :].max(1), atol=1e-6)
        weighed = regions[name].reshape(1, -1, cfg.depth, cfg.width).mean((1, 2))  # weights are equal before training
        assert np.allclose(arrays(learned=True)[name], weighed, atol=1e-5)
    for options, words in (
        ({"layers": (9,)}, "layers: got 9"), ({"level": "token", "layers": (0,)}, "last block's alone"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            FeatureExtractor(model, DATA, **options)


@pytest.mark.parametrize("kind", [AVFMAEForFinetuning, avfmae.AVFMAEForPretraining], ids=["finetuned", "pretrained"])
@pytest.mark.parametrize("name", ["hicmae_base", "mae_dfer", "svfap"])
def test_every_member_has_features_of_every_level(name, kind, media):
    torch.manual_seed(0)
    cfg = avfmae.ModelConfig.preset(name).at_size_of(avfmae.ModelConfig.preset("demo"))
    member = kind(cfg, 3) if kind is AVFMAEForFinetuning else kind(cfg)
    for level, size in (
        ("clip", ()),
        ("region", (cfg.video.regions if "lgi" in cfg.encoder else 1,)),
        ("token", (cfg.video.tokens,)),
    ):
        layers = (-1,) if level == "token" else (0, -1)
        found = FeatureExtractor(member, DATA, level=level, layers=layers)([media["good_mp4"]]).arrays
        assert list(found) == list(cfg.modalities) and found["video"].shape == (1, *size, len(layers) * cfg.width)
        assert np.isfinite(found["video"]).all()


def test_of_a_silent_clip_a_model_that_hears_alone_has_none(media):
    hears = AVFMAEForFinetuning(avfmae.ModelConfig.preset("demo").replace(modalities=("audio",)), 3)
    found = FeatureExtractor(hears, DATA)([media["silent_mp4"], media["good_mp4"]])
    assert [bad.path for bad in found.bad] == [media["silent_mp4"]] and len(found.arrays["audio"]) == 1


def test_tokens_stand_in_raster_order(model, media):
    """A picture that changes in one patch changes that patch's token most."""
    extractor = FeatureExtractor(model, DATA, level="token")
    video = torch.randint(0, 256, (1, *model.cfg.video.size, 3), dtype=torch.uint8)
    other = video.clone()
    other[:, 2:4, 16:32, 48:64] = 255 - other[:, 2:4, 16:32, 48:64]
    before, after = (extractor.features(model.video_encoder, clip, "video") for clip in (video, other))
    rows, columns = model.cfg.video.grid[1:]
    assert int((before - after).abs().sum(-1).argmax()) == 1 * rows * columns + 1 * columns + 3


def test_the_command_writes_each_format(model, media, tmp_path, capsys):
    save_weights(model, tmp_path / "weights.safetensors", task="classification",
                 classes=("a", "b", "c"), data={"stride": 8})  # fmt: skip
    for suffix in ("safetensors", "npz", "parquet"):
        out = tmp_path / f"f.{suffix}"
        with pytest.raises(SystemExit, match="1 of 3 clips could not be read"):
            main(["features", *(media[n] for n in ("good_mp4", "silent_mp4", "text_mp4")), "--model", str(tmp_path),
                  "--out", str(out), "--workers", "0"])  # fmt: skip
    said = capsys.readouterr().err
    assert "cannot read" in said and "1 of 3 clips have no sound: silence is heard" in said
    first = safetensors.numpy.load_file(tmp_path / "f.safetensors")
    second = np.load(tmp_path / "f.npz")
    third = pyarrow.parquet.read_table(tmp_path / "f.parquet")
    shapes = json.loads(third.schema.metadata[b"shapes"])
    for name, array in first.items():
        assert array.shape == (2, model.cfg.width) and np.array_equal(array, second[name])
        assert np.array_equal(array[0], np.array(third[name][0].as_py(), np.float32).reshape(shapes[name]))
    with open(tmp_path / "f.npz.csv", newline="") as file:
        assert [row["path"] for row in csv.DictReader(file)] == [media["good_mp4"], media["silent_mp4"]]


def test_a_pretrained_model_gives_features_too(media, tmp_path):
    torch.manual_seed(0)
    model = avfmae.AVFMAEForPretraining(avfmae.ModelConfig.preset("demo"))
    save_weights(model, tmp_path / "weights.safetensors")
    arrays = avfmae.FeatureExtractor.from_pretrained(tmp_path)([media["good_mp4"]], segments=3).arrays
    assert {name: array.shape for name, array in arrays.items()} == dict.fromkeys(("video", "audio"), (1, model.cfg.width))


def test_clips_that_share_a_number_keep_apart(model, media, tmp_path):
    clips = [Clip(0, media["good_mp4"]), str(tmp_path / "none.mp4"), Clip(0, media["fast_mp4"])]
    found = FeatureExtractor(model, DATA)(clips)
    assert [c.path for c in found.clips] == [media["good_mp4"], media["fast_mp4"]]
    assert [(b.id, b.path) for b in found.bad] == [(1, clips[1])]
