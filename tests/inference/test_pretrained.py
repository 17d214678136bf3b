"""A model as a folder: what is loaded is the same bit by bit, here and over a hub; and files for other programs."""

import json
import shutil

import av
import numpy as np
import pytest
import safetensors.torch
import torch

import avfmae
from avfmae.checkpoints import pretrained
from avfmae.cli import main
from avfmae.data.config import DataConfig
from avfmae.data.sources import open_clip
from avfmae.inference import export
from avfmae.inference.predictor import Predictor
from avfmae.models.finetuning import AVFMAEForFinetuning
from avfmae.tasks.classification import Classification
from avfmae.viz.reconstruction import moving_pictures
from avfmae.viz.video import frames_of_sound, write_mp4


@pytest.fixture(scope="module")
def predictor():
    torch.manual_seed(0)
    model = AVFMAEForFinetuning(avfmae.ModelConfig.preset("demo"), 3, "classification").eval()
    return Predictor(model, Classification(("a", "b", "c")), DataConfig(stride=8), detector="precropped")


def same(a, b):
    mine, others = a.state_dict(), b.state_dict()
    return mine.keys() == others.keys() and all(torch.equal(mine[name], others[name]) for name in mine)


def test_what_is_loaded_is_what_was_saved(predictor, tmp_path, media):
    folder = predictor.save_pretrained(tmp_path / "mine")
    assert {p.name for p in folder.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    loaded = Predictor.from_pretrained(folder, detector="precropped")
    assert same(loaded.model, predictor.model) and loaded.task == predictor.task
    assert json.dumps(loaded.about, sort_keys=True) == json.dumps(predictor.about, sort_keys=True)
    assert loaded(media["good_mp4"]).rows == predictor(media["good_mp4"]).rows
    config = json.loads((folder / "config.json").read_text())
    assert config["classes"] == ["a", "b", "c"] and config["config"]["width"] == 64
    assert "Predictor.from_pretrained" in (folder / "README.md").read_text()
    again = loaded.save_pretrained(tmp_path / "again")
    first, second = (safetensors.torch.load_file(f / "model.safetensors") for f in (folder, again))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    # another tool may drop what the file says of itself; config.json says it too
    safetensors.torch.save_file(safetensors.torch.load_file(folder / "model.safetensors"), folder / "model.safetensors")
    assert same(Predictor.from_pretrained(folder, detector="precropped").model, predictor.model)


def test_a_pretrained_model_is_saved_likewise(tmp_path):
    torch.manual_seed(0)
    model = avfmae.AVFMAEForPretraining(avfmae.ModelConfig.preset("demo"))
    avfmae.save_pretrained(model, tmp_path / "pre")
    assert same(avfmae.FeatureExtractor.from_pretrained(tmp_path / "pre").model, model)
    with pytest.raises(ValueError, match="is not the result of a fine-tuning"):
        Predictor.from_pretrained(tmp_path / "pre")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder that stands for Hugging Face's hub; gives what it was asked."""
    asked = []

    class Hub:
        def create_repo(self, repo_id, private, token, exist_ok):
            asked.append({"private": private})
            (tmp_path / repo_id).mkdir(parents=True)

        def create_branch(self, repo_id, branch, token, exist_ok):
            asked.append({"branch": branch})

        def upload_folder(self, repo_id, folder_path, **options):
            asked.append({name: value for name, value in options.items() if value is not None})
            shutil.copytree(folder_path, tmp_path / repo_id, dirs_exist_ok=True)
            return "https://hub/commit/1"

        HfApi = None

        @staticmethod
        def snapshot_download(name, **options):
            asked.append(options)
            return str(tmp_path / name)

    Hub.HfApi = Hub
    monkeypatch.setattr(pretrained, "need", lambda *_: Hub)
    return asked


def test_models_go_to_a_hub_and_come_back(predictor, hub, tmp_path):
    assert predictor.push_to_hub(repo_id="me/my-model", commit_message="first") == "https://hub/commit/1"
    card = (tmp_path / "me" / "my-model" / "README.md").read_text()
    assert 'avfmae.Predictor.from_pretrained("me/my-model")' in card and "pipeline_tag: video-classification" in card
    shutil.move(tmp_path / "me" / "my-model", tmp_path / "me" / "my-model-v1.5")
    loaded = Predictor.from_pretrained("me/my-model-v1.5", detector="precropped")
    assert same(loaded.model, predictor.model) and loaded.task == predictor.task
    wanted = {"allow_patterns": ["weights.safetensors", "model.safetensors", "config.json"]}
    assert hub == [{"private": None}, {"commit_message": "first"}, wanted]


@pytest.mark.parametrize("kind", [avfmae.AVFMAEForPretraining, AVFMAEForFinetuning], ids=["pre-trained", "fine-tuned"])
def test_a_model_itself_is_saved_loaded_and_shared(kind, tmp_path, hub):
    torch.manual_seed(0)
    model = kind(avfmae.ModelConfig.preset("demo"), *([3] if kind is AVFMAEForFinetuning else []))
    loaded = kind.from_pretrained(model.save_pretrained(tmp_path / "first", data={"stride": 8}))
    assert type(loaded) is kind and same(loaded, model) and not loaded.training
    again = kind.from_pretrained(loaded.save_pretrained(tmp_path / "again"))
    assert same(again, model) and again.about["data"] == {"stride": 8}  # what it was loaded with goes on
    loaded.push_to_hub("me/mine", private=True, token="t", branch="v1")
    assert same(kind.from_pretrained("me/mine", revision="v1", allow_patterns=None), model)
    revision = {"revision": "v1"}
    assert hub == [{"private": True}, {"branch": "v1"}, revision | {"token": "t"}, revision | {"allow_patterns": None}]


def test_a_head_is_made_anew_on_pretrained_encoders(tmp_path, predictor):
    torch.manual_seed(0)
    model = avfmae.AVFMAEForPretraining(avfmae.ModelConfig.preset("demo"))
    folder = model.save_pretrained(tmp_path / "pre")
    tuned = AVFMAEForFinetuning.from_pretrained(folder, num_outputs=5)
    assert tuned.head.out_features == 5 and same(tuned.video_encoder, model.video_encoder)
    with pytest.raises(ValueError, match="expected num_outputs"):
        AVFMAEForFinetuning.from_pretrained(folder)
    with pytest.raises(ValueError, match="is a fine-tuned model, which has no decoder"):
        avfmae.AVFMAEForPretraining.from_pretrained(predictor.save_pretrained(tmp_path / "tuned"))


def test_a_model_that_is_not_there_is_named(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="no such model"):
        pretrained.weights_file(tmp_path)
    monkeypatch.setattr("avfmae.extras.importlib.import_module", lambda name: (_ for _ in ()).throw(ImportError(name)))
    with pytest.raises(RuntimeError, match=r"pip install 'avfmae\[hub\]'"):
        pretrained.weights_file("me/my-model")


@pytest.mark.exhaustive
@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
def test_other_programs_get_the_model_and_its_numbers(suffix, predictor, tmp_path, capsys):
    """The command compares logits of one, two and five clips, and refuses to write what differs."""
    if suffix == "onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(package)
    folder, out = predictor.save_pretrained(tmp_path / "mine"), tmp_path / f"model.{suffix}"
    main(["export", str(folder), "--out", str(out)])
    code = capsys.readouterr().out
    scope: dict = {}
    exec(code, scope)  # what is printed runs
    assert out.is_file() and scope["logits"].shape == (1, 3)


@pytest.mark.exhaustive
def test_the_archive_of_a_model_with_regions_is_read(tmp_path):
    """MAE-DFER's region attention goes to PyTorch's in an export, in a block that torch 2.13 could not read."""
    torch.manual_seed(0)
    small = {"width": 64, "heads": 2, "depth": 2, "decoder_width": 64, "decoder_heads": 2, "decoder_depth": 2}
    model = avfmae.AVFMAEForFinetuning(avfmae.ModelConfig.preset("mae_dfer").replace(**small), 3)
    avfmae.save_pretrained(model, tmp_path / "mine", classes=("a", "b", "c"))
    main(["export", str(tmp_path / "mine"), "--out", str(tmp_path / "model.pt2")])
    assert (tmp_path / "model.pt2").is_file()


def test_a_file_of_another_kind_is_not_exported(predictor, tmp_path):
    folder = predictor.save_pretrained(tmp_path / "mine")
    with pytest.raises(SystemExit, match=r"expected a file of \.onnx or \.pt2"):
        main(["export", str(folder), "--out", str(tmp_path / "model.tflite")])


def test_what_moves_shows_the_clip_and_its_sound_in_step(tmp_path):
    """Frames change when they should, the line moves, and a click is heard when it is."""
    video = np.zeros((3, 1, 4, 8, 8, 3), np.uint8)
    video[:, 0] += np.array([40, 90, 140, 190], np.uint8)[:, None, None, None]
    audio = np.random.default_rng(0).normal(size=(3, 1, 128, 256))
    audio[1, 0, :, :50] = np.nan
    moving = list(moving_pictures({"video": video, "audio": audio}, 2.0))
    assert [time for time, _ in moving] == pytest.approx(np.arange(50) / 25)
    assert [int(picture[30, 30, 0]) for _, picture in moving] == [40] * 13 + [90] * 12 + [140] * 13 + [190] * 12
    assert [int((picture[300, :256] == 255).all(-1).argmax()) for _, picture in moving[::10]] == [0, 51, 102, 153, 204]
    assert (moving[20][1][300, 256:300] == 128).all()  # masked sound is grey
    samples = np.zeros(32_000, np.float32)
    samples[16_000:16_400] = 0.8 * np.sin(np.arange(400))
    write_mp4(tmp_path / "made.mp4", moving, 25, frames_of_sound(samples, 16_000))
    source = open_clip(str(tmp_path / "made.mp4"))
    heard = np.abs(source.sound(source.info.start, source.info.start + 2))
    assert len(source.info.times) == 50 and 15_900 < np.flatnonzero(heard > 0.3)[0] < 16_100
    write_mp4(tmp_path / "silent.mp4", moving, 25, None)
    assert not open_clip(str(tmp_path / "silent.mp4")).info.has_audio


@pytest.mark.slow
def test_a_pretrained_model_draws_what_it_reconstructs(predictor, tmp_path, media, monkeypatch, capsys):
    monkeypatch.setattr("avfmae.inference.reconstruct.chosen_detector", lambda name: "precropped")
    torch.manual_seed(0)
    avfmae.save_pretrained(avfmae.AVFMAEForPretraining(avfmae.ModelConfig.preset("demo")), tmp_path / "pre")
    out = tmp_path / "out"
    names = ("good_mp4", "silent_mp4", "text_mp4")
    with pytest.raises(SystemExit, match="1 of 3 videos could not be read"):
        main(["reconstruct", *(media[name] for name in names), "--model", str(tmp_path / "pre"), "--out", str(out)])
    written = {f"{name}.mp4.{suffix}" for name in ("good", "silent") for suffix in ("png", "mp4")}
    assert {p.name for p in out.iterdir()} == written and "cannot read" in capsys.readouterr().err
    for name, kinds in (("good", ["video", "audio"]), ("silent", ["video"])):
        with av.open(str(out / f"{name}.mp4.mp4")) as container:
            assert [s.type for s in container.streams] == kinds
            assert container.duration / 1e6 == pytest.approx(16 / 25, abs=0.05)  # 4 frames, 4 apart
            frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]).astype(int)
        original, masked, filled = (frames[:, 20:276, k * 256 : k * 256 + 256] for k in range(3))
        hidden = np.abs(masked - 128).max(-1) < 8
        assert 0.3 < hidden.mean() < 0.9 and np.abs(original - filled)[~hidden].mean() < 6  # but for the codec
    with pytest.raises(SystemExit, match="is a fine-tuned model"):
        main(["reconstruct", media["good_mp4"], "--model", str(predictor.save_pretrained(tmp_path / "tuned"))])


def test_logits_that_are_no_number_are_not_as_the_model_s(predictor, tmp_path, monkeypatch):
    class Loaded:
        def module(self):
            return lambda *clips: (torch.full((len(clips[0]), 3), torch.nan),)

    monkeypatch.setattr(torch.export, "load", lambda file: Loaded())
    (tmp_path / "m.pt2").write_bytes(b"")
    assert np.isnan(export.largest_difference(predictor.model, tmp_path / "m.pt2", ".pt2", list(predictor.model.cfg.modalities)))
