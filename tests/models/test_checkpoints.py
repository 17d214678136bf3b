"""Released files in and out, and files that are none."""

import argparse
import collections
import dataclasses
import enum
import gzip
import io
import pathlib
import pickle
import struct
import tarfile
import warnings
import zipfile

import golden
import numpy as np
import pytest
import torch
import torch_files
from media_files import counted_frames

import avfmae
from avfmae.checkpoints import read_about, read_weights, save_weights
from avfmae.cli import main
from avfmae.data.clip import Clip
from avfmae.data.manifest import write_manifest
from avfmae.datasets.drawn import encode

pytestmark = pytest.mark.slow

TINY = avfmae.ModelConfig.preset("tiny")


@pytest.mark.parametrize("kind", ["avfmae_pretraining", "avfmae_finetuning_11_classes", "hicmae_pretraining"])
def test_names_and_shapes_are_the_released_ones(kind):
    cfg = avfmae.ModelConfig.preset("hicmae_base" if kind.startswith("hic") else "base")
    with torch.device("meta"):
        model = {
            "avfmae_pretraining": lambda: avfmae.AVFMAEForPretraining(cfg),
            "avfmae_finetuning_11_classes": lambda: avfmae.AVFMAEForFinetuning(cfg, 11),
            "hicmae_pretraining": lambda: avfmae.AVFMAEForPretraining(cfg),
        }[kind]()
    ours = {name: list(t.shape) for name, t in avfmae.released_state_dict(model).items()}
    assert ours == dict(golden.keys(kind))


@pytest.mark.parametrize("layout", ["model", "module", "bare", "prefixed"])
def test_pickles_of_every_layout_load(layout, tmp_path):
    model = avfmae.AVFMAEForPretraining(TINY)
    state = avfmae.released_state_dict(model)
    content = {
        "model": {"model": state, "epoch": 3}, "module": {"module": state}, "bare": state,
        "prefixed": {"model": {f"module._orig_mod.{n}": t for n, t in state.items()}},
    }[layout]  # fmt: skip
    torch.save(content, tmp_path / "checkpoint.pth")
    other = avfmae.AVFMAEForPretraining(TINY)
    report = avfmae.load_released(other, tmp_path / "checkpoint.pth")
    assert len(report.matched) == len(state) and "tensors loaded" in str(report)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


def test_finetuning_takes_encoders_and_fusion_of_a_pretraining_file(tmp_path):
    model = avfmae.AVFMAEForPretraining(TINY)
    save_weights(model, tmp_path / "weights.safetensors", note="x")
    assert read_about(tmp_path / "weights.safetensors") == {"config": TINY, "note": "x"}
    clf = avfmae.AVFMAEForFinetuning(TINY, 5)
    head = clf.head.weight.clone()
    report = avfmae.load_released(clf, tmp_path / "weights.safetensors")
    assert torch.equal(clf.video_encoder.embed.proj.weight, model.video_encoder.embed.proj.weight)
    assert torch.equal(clf.fusion.feedback_attn.kv.weight, model.fusion.feedback_attn.kv.weight)
    assert torch.equal(clf.head.weight, head)
    assert {n.split(".")[0] for n in report.dropped} == {
        "decoder",
        "decoder_audio",
        "encoder_to_decoder",
        "encoder_to_decoder_audio",
        "mask_token",
        "mask_token_audio",
    }
    assert {n.split(".")[0] for n in report.missing} == {"head", "fc_norm", "layer_weights_video", "layer_weights_audio"}
    assert "dropped: decoder" in str(report)
    video_only = avfmae.AVFMAEForFinetuning(TINY.replace(modalities=("video",)), 5)
    avfmae.load_released(video_only, tmp_path / "weights.safetensors")
    assert torch.equal(video_only.video_encoder.region_tokens, model.video_encoder.region_tokens)


def test_a_head_of_another_size_starts_fresh():
    six, seven = avfmae.AVFMAEForFinetuning(TINY, 6), avfmae.AVFMAEForFinetuning(TINY, 7)
    report = avfmae.load_released(seven, avfmae.released_state_dict(six))
    assert report.resized == ["head.weight", "head.bias"]


def test_gradients_come_under_released_names():
    model = avfmae.AVFMAEForFinetuning(TINY.replace(modalities=("audio",)), 2)
    model(audio=torch.randn(2, 1, 256, 128)).logits.sum().backward()
    gradients = avfmae.released_gradients(model)
    packed = model.audio_encoder.blocks[0].local_attn.qkv.weight.grad
    assert torch.equal(gradients["encoder_audio.blocks.0.first_attn.q.weight"], packed[:64])
    assert torch.equal(gradients["encoder_audio.blocks.0.first_attn.kv.weight"], packed[64:])


class Kept(collections.OrderedDict):
    """A mapping of a training script's own, which nobody else can make."""


class Kit(collections.UserDict):
    """One that keeps its items in an attribute."""


class Trainer:
    def __init__(self, **attributes):
        self.__dict__ |= attributes


ELSEWHERE = {
    "own mapping under model": ("model", lambda state: {"model": Kept(state)}),
    "own mapping, bare": ("", Kept),
    "own mapping with attribute": ("model.data", lambda state: {"model": Kit(state)}),
    "the same twice": ("model", lambda state: {"model_ema": state, "model": state}),
    "the same twice elsewhere": ("net", lambda state: {"net": state, "student": state}),
    "net": ("net", lambda state: {"net": state, "rng": torch.get_rng_state()}),
    "state.model": ("state.model", lambda state: {"state": {"model": state, "step": 3}}),
    "object's attribute": ("trainer.net", lambda state: {"trainer": Trainer(net=state, lr=0.1)}),
    "three keys deep": ("ckpt.state.net", lambda state: {"ckpt": {"state": {"net": state}}}),
    "arrays": ("model", lambda state: {"model": {n: t.numpy() for n, t in state.items()}}),
    "two prefixes": ("", lambda state: {f"module.student.encoder.{n}": t for n, t in state.items()}),
    "wrapped parts": ("", lambda state: {f"_orig_mod.{n.replace('encoder.', 'encoder._fsdp_wrapped_module.', 1)}": t
                                          for n, t in state.items()}),
    "average beside it": ("state_dict", lambda state: {"state_dict": {f"ema_model.{n}": t + 1 for n, t in state.items()}
                                                       | {f"model.{n}": t for n, t in state.items()}}),
    "Lightning": ("state_dict", lambda state: {"state_dict": {f"model.{n}": t for n, t in state.items()}}),
}  # fmt: skip


@pytest.mark.parametrize("where", ELSEWHERE)
def test_weights_are_found_where_other_training_codes_keep_them(where, tmp_path):
    model, other = (avfmae.AVFMAEForPretraining(TINY) for _ in range(2))
    state = avfmae.released_state_dict(model)
    place, wrap = ELSEWHERE[where]
    content = wrap(state)
    content |= {} if where == "own mapping, bare" else {"optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}, "epoch": 3}
    torch.save(content, tmp_path / "checkpoint.pth")
    report = avfmae.load_released(other, tmp_path / "checkpoint.pth")
    assert report.place == place and len(report.matched) == len(state)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize("whole", [False, True], ids=["state dict", "whole module"])
def test_a_models_own_names_load(whole, tmp_path):
    model, other = (avfmae.AVFMAEForPretraining(TINY) for _ in range(2))
    parallel = torch.nn.DataParallel(model)
    torch.save(parallel if whole else parallel.state_dict(), tmp_path / "x.pth")
    avfmae.load_released(other, tmp_path / "x.pth")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


def test_a_file_is_known_by_its_content(tmp_path):
    save_weights(avfmae.AVFMAEForPretraining(TINY), tmp_path / "a.pth")
    torch.save(read_weights(tmp_path / "a.pth"), tmp_path / "b.safetensors")
    a, b = (read_weights(tmp_path / name) for name in ("a.pth", "b.safetensors"))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_tar_archives_of_before_0_2(tmp_path):
    """Written by hand, as torch does not any more; torch reads it alike."""

    class Weights:
        def __reduce_ex__(self, protocol):
            raise NotImplementedError

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return 9 if isinstance(value, Weights) else None

    content, values = io.BytesIO(), np.arange(12, dtype="<f4")
    Pickler(content, 2).dump({"model": {"head.weight": Weights()}})
    storages = [pickle.dumps(1, 2), pickle.dumps((5, "cpu", torch.FloatStorage), 2), struct.pack("<q", 12), values.tobytes(),
                pickle.dumps([(6, 5, 2, 10)], 2)]  # fmt: skip
    tensors = [pickle.dumps(1, 2), pickle.dumps((9, 6, torch.FloatTensor), 2), struct.pack("<i4x5q", 2, 2, 3, 3, 1, 1)]
    with tarfile.open(tmp_path / "x.pth", "w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in (("storages", b"".join(storages)), ("tensors", b"".join(tensors)), ("pickle", content.getvalue())):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    read = read_weights(tmp_path / "x.pth")["model"]["head.weight"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = torch.load(tmp_path / "x.pth", weights_only=False)["model"]["head.weight"]
    assert read.tolist() == [[3, 4, 5], [6, 7, 8]] == theirs.tolist()


@pytest.mark.parametrize("name", ["\x1b[31mred.weight", "\x1b]0;x\x07"])
def test_names_in_a_file_are_no_escape_codes_in_messages(name, tmp_path):
    model = avfmae.AVFMAEForFinetuning(TINY.replace(modalities=("audio",)), 2)
    torch.save({name: torch.ones(1)}, tmp_path / "x.pth")
    with pytest.raises(ValueError) as caught:
        avfmae.load_released(model, tmp_path / "x.pth")
    assert str(caught.value).isprintable() and r"\x1b" in str(caught.value)
    report = avfmae.load_released(model, avfmae.released_state_dict(model) | {name: torch.ones(1)})
    assert "\x1b" not in str(report) and r"\x1b" in str(report)


def test_weights_in_two_unusual_places_are_no_guess(tmp_path):
    state = avfmae.released_state_dict(avfmae.AVFMAEForPretraining(TINY))
    torch.save({"student": state, "teacher": dict(state)}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"weights under 'student', 'teacher', expected weights in one place") as caught:
        avfmae.load_released(avfmae.AVFMAEForPretraining(TINY), tmp_path / "x.pth")
    assert str(tmp_path / "x.pth") in str(caught.value)


class Mode(enum.Enum):
    PRETRAIN = "pretrain"


@dataclasses.dataclass
class Settings:
    depth: int = 10


def beside() -> dict:
    """What training codes keep beside the weights."""
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer, scaler = torch.optim.AdamW([parameter]), torch.amp.GradScaler("cpu")
    parameter.sum().backward()
    optimizer.step()
    return {
        "args": argparse.Namespace(lr=3e-4, output_dir=pathlib.Path("runs/base"), device=torch.device("cuda:0")),
        "epoch": 99, "best_acc": np.float64(71.5), "history": collections.defaultdict(list, {"loss": [np.float32(0.5)]}),
        "mode": Mode.PRETRAIN, "settings": Settings(), "size": torch.Size([16, 160]), "dtype": torch.bfloat16,
        "optimizer": optimizer.state_dict(), "scaler": scaler.state_dict(), "rng": (torch.get_rng_state(), np.random.get_state()),
        "objects": np.array([Settings(), None], dtype=object), "function": torch.nn.functional.gelu,
    }  # fmt: skip


FORMATS = {
    "zip": {}, "before 1.6": {"_use_new_zipfile_serialization": False}, "protocol 4": {"pickle_protocol": 4},
}  # fmt: skip


@pytest.mark.parametrize("how", FORMATS)
@pytest.mark.parametrize("place", ["model", "module", "state_dict", "model_state_dict", "model_ema", "bare"])
def test_weights_load_from_beside_whatever_training_kept(place, how, tmp_path):
    model, other = (avfmae.AVFMAEForPretraining(TINY) for _ in range(2))
    state = avfmae.released_state_dict(model)
    torch.save({**beside(), **(state if place == "bare" else {place: state})}, tmp_path / "checkpoint.pth", **FORMATS[how])
    with pytest.raises(Exception, match=r"[Ww]eights_only|Weights only"):  # not vacuous: torch refuses the settings
        torch.load(tmp_path / "checkpoint.pth", weights_only=True)
    report = avfmae.load_released(other, tmp_path / "checkpoint.pth")
    assert len(report.matched) == len(state) and report.place == ("" if place == "bare" else place)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


def test_of_several_weights_the_model_is_taken_and_the_report_says_so(tmp_path):
    model, average, other = (avfmae.AVFMAEForPretraining(TINY) for _ in range(3))
    content = {"model_ema": avfmae.released_state_dict(average), "model": avfmae.released_state_dict(model)}
    torch.save(content, tmp_path / "checkpoint.pth")
    report = avfmae.load_released(other, tmp_path / "checkpoint.pth")
    assert torch.equal(other.video_encoder.region_tokens, model.video_encoder.region_tokens)
    assert "from 'model'; not from 'model_ema'" in str(report)


def test_init_takes_a_released_checkpoint(tmp_path, capsys):
    """On the command line; its settings are no obstacle."""
    model = avfmae.AVFMAEForPretraining(TINY)
    torch.save({"model": avfmae.released_state_dict(model), **beside()}, tmp_path / "checkpoint-99.pth")
    encode(tmp_path / "a.mp4", counted_frames(80), np.random.default_rng(0).normal(0, 0.1, 3 * 44_100), rate=44_100)
    write_manifest(tmp_path / "m.csv", [Clip(i, str(tmp_path / "a.mp4")) for i in range(2)])
    main(
        [
            "pretrain",
            "--preset",
            "tiny",
            "--manifest",
            str(tmp_path / "m.csv"),
            "--out",
            str(tmp_path / "run"),
            "--init",
            str(tmp_path / "checkpoint-99.pth"),
            "--optim.epochs",
            "1",
            "--optim.total-batch",
            "2",
            "--data.workers",
            "0",
        ]
    )
    said = " ".join("".join(capsys.readouterr()).split())
    assert f"{len(avfmae.released_state_dict(model))} tensors loaded from 'model'" in said


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "no such checkpoint"),
        ("folder", "is a folder"),
        ("empty", "is empty"),
        ("truncated", "is truncated"),
        ("truncated, before 1.6", "is truncated"),
        ("text", "torch.save did not write it"),
        ("other zip", "not one that torch.save wrote"),
        ("pickle", "torch.save did not write it"),
        ("no tensors", r"holds no weights.*it has 'model' \(dict\)"),
        ("no dict", "expected a dict of weights"),
        ("a record missing", "record data/0 is missing"),
        ("a record too short", "has 4 bytes"),
        ("bad safetensors", "no readable"),
    ],
)
def test_files_that_are_no_checkpoint_are_named(kind, reason, tmp_path):
    path = tmp_path / ("x.safetensors" if "safetensors" in kind else "x.pth")
    model = avfmae.AVFMAEForFinetuning(TINY.replace(modalities=("audio",)), 2)
    if kind.startswith("truncated"):
        torch.save(avfmae.released_state_dict(model), path, _use_new_zipfile_serialization="1.6" not in kind)
        path.write_bytes(path.read_bytes()[:-20_000])
    elif kind == "folder":
        path.mkdir()
    elif kind in ("no tensors", "no dict"):
        torch.save({"model": {"a": 1}} if kind == "no tensors" else [1], path)
    elif kind.startswith("a record"):
        torch.save({"head.weight": torch.ones(3)}, path)
        torch_files.rewrite(path, {"data/0": None if "missing" in kind else b"1234"})
    elif kind == "other zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a/b.txt", "hello")
    elif kind != "missing":
        content = {"empty": b"", "text": b"hello\n", "bad safetensors": b"\xff" * 100, "pickle": pickle.dumps({"a": 1})}
        path.write_bytes(content[kind])
    with pytest.raises((ValueError, FileNotFoundError), match=reason) as caught:
        avfmae.load_released(model, path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


OTHERS = {
    "git-lfs pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        "is a git-lfs pointer: the file itself was not",
    ),
    "HTML page": (b"\n<!DOCTYPE html>\n<html><title>Sign in</title></html>", "is an HTML page: the download failed"),
    "HTML page with a comment": (b"\xef\xbb\xbf<!-- error --><HTML lang=en>", "is an HTML page: the download failed"),
    "gzip file": (gzip.compress(b"x" * 100), "is a gzip file: unpack it first"),
}


@pytest.mark.parametrize("read", [read_weights, read_about])
@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
@pytest.mark.parametrize("kind", OTHERS)
def test_what_often_lies_in_a_checkpoints_place_is_named(kind, name, read, tmp_path):
    content, reason = OTHERS[kind]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as caught:
        read(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name}: {reason}")


@pytest.mark.parametrize("mapped", [False, True], ids=["memory", "mapped"])
def test_a_flipped_bit_in_a_record_is_found(mapped, tmp_path):
    path = tmp_path / "x.pth"
    torch.save({"a": torch.ones(3), "head.weight": torch.full((1000,), 1.5)}, path)
    content = bytearray(path.read_bytes())
    content[content.index(torch.full((9,), 1.5).numpy().tobytes()) + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"record data/1 is damaged") as caught:
        read_weights(path, mapped)
    assert str(path) in str(caught.value)


def test_a_file_saved_without_checksums_loads(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.arange(3.0)}, tmp_path / "x.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    with zipfile.ZipFile(tmp_path / "x.pth") as archive:
        assert {info.CRC for info in archive.infolist() if "/data/" in info.filename} == {0}
    assert torch.equal(read_weights(tmp_path / "x.pth", mapped=True)["a"], torch.arange(3.0))


def test_another_size_is_named():
    state = avfmae.released_state_dict(avfmae.AVFMAEForPretraining(TINY))
    with pytest.raises(
        ValueError, match=r"is \(64, 3, 2, 16, 16\), expected \(128, 3, 2, 16, 16\)|is .* expected .*: another model size"
    ):
        avfmae.load_released(avfmae.AVFMAEForPretraining(TINY.replace(width=128, heads=2)), state)


def test_half_a_model_is_refused():
    state = {
        n: t
        for n, t in avfmae.released_state_dict(avfmae.AVFMAEForPretraining(TINY)).items()
        if not n.startswith("encoder_fusion")
    }
    with pytest.raises(ValueError, match=r"lacks .* encoder_fusion"):
        avfmae.load_released(avfmae.AVFMAEForFinetuning(TINY, 2), state)
