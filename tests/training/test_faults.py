"""Faults of scale, of the machine and of foreign files, kind by kind, and the tests that cover them; what none covers is below.

| kind | tests |
| --- | --- |
| work a step that grows with the clips | media/test_dataset: test_an_epoch_is_ordered_once |
| a clip list that is sent to every worker | media/test_manifest: test_a_long_list_is_sent_as_a_file, test_a_long_manifest_is_read_once_and_mapped |
| caches that hold what they should let go | media/test_shards: test_few_shards_are_kept_open; media/test_field: test_what_is_kept_of_files_is_bounded |
| the machine's faults blamed on clips | media/test_workers: test_faults_of_the_machine_are_retried_and_then_told; media/test_shards: test_too_many_open_files_are_no_clips_fault; training/test_faults: test_a_lost_ray_worker_is_no_clips_fault |
| foreign text as markup | training/test_faults: test_names_are_no_markup; models/test_checkpoints: test_names_in_a_file_are_no_escape_codes_in_messages |
| a damaged newest checkpoint, a stray folder | training/test_resume: test_a_damaged_checkpoint_falls_back_to_the_one_before, test_a_step_that_is_saved_once_more_is_there_at_every_moment; models/test_weights: test_a_flipped_bit_in_weights_is_found |
| a run continued as another | training/test_resume: test_what_results_depend_on_is_named, test_the_initial_weights_are_compared_by_their_bytes |
| two processes in a folder | training/test_resume: test_a_folder_belongs_to_one_process; training/test_faults: test_prepare_keeps_others_out |
| changed sources, damaged shards and indexes | media/test_prepare: test_what_is_damaged_gone_or_made_of_other_files_is_made_anew; media/test_shards: test_a_flipped_bit_of_a_frame_or_of_sound_names_shard_and_clip, test_a_flipped_bit_anywhere_in_an_index_is_told |
| pictures that fill the memory | media/test_field: test_frames_that_would_fill_the_memory_are_refused |
| a full disk, read-only folders, damaged metadata | training/test_resume: test_what_cannot_be_written_is_said_and_leaves_nothing; training/test_faults: test_a_folder_that_cannot_be_written_to_is_named, test_damaged_metadata_is_told |
| playlists | media/test_field: test_playlists_are_refused_by_name |
| cells that a spreadsheet would run | media/test_manifest: test_names_come_back_that_are_no_utf8_or_look_like_formulas |
| files that nobody else may read | training/test_faults: test_what_is_written_has_the_mode_that_the_user_wants |
| a list of bad clips that is rewritten | media/test_quarantine: test_a_bad_clip_adds_a_row_and_rewrites_none |
| evaluation in one process | media/test_as_trained: test_two_processes_share_the_clips |
| one clip a step | training/test_faults: test_batch_statistics_of_one_clip_are_refused |
| initial weights and two processes | training/test_processes: test_torchrun_trains_as_one_process_does_which_goes_on_where_two_stopped |
"""  # noqa: E501

import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

import avfmae
from avfmae.checkpoints import save_weights
from avfmae.checkpoints.state import TrainingState, save_checkpoint
from avfmae.cli import main
from avfmae.data.clip import Clip
from avfmae.data.manifest import write_manifest
from avfmae.data.prepare import _fetch
from avfmae.files import locked

TINY = avfmae.ModelConfig.preset("tiny")
TESTS = Path(__file__).parents[1]


def test_every_test_of_the_table_is_there():
    for line in (__doc__ or "").splitlines()[4:]:
        for place, names in re.findall(r"(\w+/test_\w+): (test_\w+(?:, test_\w+)*)", line):
            text = (TESTS / f"{place}.py").read_text()
            for name in names.split(", "):
                assert f"\ndef {name}(" in text, f"{place}.py has no {name}"


def said(*arguments):
    """The message that a command ends with."""
    with pytest.raises(SystemExit) as caught:
        main([str(a) for a in arguments])
    assert isinstance(caught.value.code, str)
    return caught.value.code


@pytest.fixture
def one_clip(media, tmp_path):
    write_manifest(tmp_path / "m.csv", [Clip(0, media["good_mp4"])])
    return tmp_path / "m.csv"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    about = {"task": "classification", "classes": ["a", "b"], "modalities": ["video", "audio"]}
    save_weights(avfmae.AVFMAEForFinetuning(TINY, 2), path, **about)
    return path


PRETRAIN = ("pretrain", "--preset", "tiny", "--data.workers", 0, "--optim.epochs", 1)


@pytest.mark.parametrize("command", ["pretrain", "prepare", "evaluate"])
def test_a_folder_that_cannot_be_written_to_is_named(command, one_clip, weights, tmp_path):
    if os.geteuid():
        out = tmp_path / "read-only" / "out"
        out.parent.mkdir(mode=0o555)
    else:  # to whom nothing is read-only
        (tmp_path / "file").touch()
        out = tmp_path / "file" / "out"
    message = said(*{
        "pretrain": (*PRETRAIN, "--manifest", one_clip, "--optim.total-batch", 2, "--out", out),
        "prepare": ("prepare", one_clip, "--detector", "precropped", "--workers", 1, "--out", out),
        "evaluate": ("evaluate", weights, one_clip, "--workers", 0, "--out", out),
    }[command])  # fmt: skip
    assert str(out.parent) in message and re.search("Not a directory|Permission denied|File exists", message)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"config": "{"}, "is no readable safetensors checkpoint"),
        ({"config": "{}"}, "its model configuration is not understood"),
        ({"config": "3"}, "its model configuration is not understood"),
        ({"config": None}, "carries no model configuration"),
        ({"data": '{"speed": 3}'}, "its metadata is not understood"),
        ({"task": '"ranking"'}, "expected one of classification, regression"),
    ],
    ids=["no-json", "no-fields", "number", "no-config", "unknown-setting", "unknown-task"],
)
def test_damaged_metadata_is_told(change, words, weights, one_clip, tmp_path):
    from safetensors import safe_open

    with safe_open(weights, "pt") as file:
        metadata = {k: v for k, v in (file.metadata() | change).items() if v is not None and k != "checksum"}
    save_file(load_file(weights), tmp_path / "w.safetensors", metadata)
    message = said("evaluate", tmp_path / "w.safetensors", one_clip)
    assert words in message


def test_what_is_written_has_the_mode_that_the_user_wants(tmp_path):
    """Checkpoints too, whose libraries keep files to oneself."""
    model = avfmae.AVFMAEForPretraining(TINY)
    before = os.umask(0o027)
    try:
        folder = save_checkpoint(tmp_path / "checkpoints", model, torch.optim.AdamW(model.parameters()), TrainingState(1))
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (folder, *folder.iterdir())}
    assert modes == {"step-00000001": 0o750, "weights.safetensors": 0o640, "state.pt": 0o640}


def test_batch_statistics_of_one_clip_are_refused(one_clip, tmp_path):
    message = said(*PRETRAIN, "--manifest", one_clip, "--optim.total-batch", 1, "--out", tmp_path / "run")
    assert "optim.total_batch, optim.micro_batch: got one clip a pass, expected 2 or more" in message


def test_prepare_keeps_others_out(one_clip, tmp_path):
    with locked(tmp_path / "set" / ".lock"):
        message = said("prepare", one_clip, "--out", tmp_path / "set", "--detector", "precropped")
    assert f"process {os.getpid()} of " in message and "works there; choose another out" in message
    assert not (tmp_path / "set" / "prepare.json").exists()


@pytest.mark.parametrize("fault", ["WorkerCrashedError", "OutOfMemoryError", "NodeDiedError"])
def test_a_lost_ray_worker_is_no_clips_fault(fault):
    """The run ends with its words, and the clip is not set aside."""
    names = ("WorkerCrashedError", "OutOfMemoryError", "NodeDiedError")
    exceptions = SimpleNamespace(**{name: type(name, (Exception,), {}) for name in names})

    def get(reference):
        raise getattr(exceptions, fault)("lost\nmore")

    with pytest.raises(RuntimeError, match=r"^a\.mp4: Ray lost three workers on this clip: lost$"):
        _fetch(SimpleNamespace(get=get, exceptions=exceptions), Clip(0, "a.mp4"), iter([None]), 1.0)


@pytest.mark.slow
def test_names_are_no_markup(media, weights, tmp_path, capsys):
    """Nor escape codes; what looks like a tag is printed, and nothing is lost of the name."""
    folder, name = tmp_path / "Title [dQw4w9WgXcQ] [", "d] [red]\x1b[31m.mp4"  # "[/d]" closes a tag
    folder.mkdir()
    shutil.copy(media["good_mp4"], folder / name)
    (folder / name.replace("31", "32")).write_bytes(b"")
    shown = "Title [dQw4w9WgXcQ] [/d] [red]\\x1b[32m.mp4"
    main(["prepare", str(folder), "--out", str(tmp_path / "set"), "--detector", "precropped", "--workers", "1"])
    with pytest.raises(SystemExit, match="1 of 2 clips could not be read"):
        main(["evaluate", str(weights), *map(str, sorted(folder.iterdir())), "--workers", "0", "--out", str(tmp_path / "p.csv")])
    printed = capsys.readouterr()
    assert "\x1b[32m" not in printed.out + printed.err and f"{shown}: the file is empty" in printed.err
    message = said(*PRETRAIN, "--manifest", tmp_path / "set" / "set_aside.csv", "--optim.total-batch", 2, "--out", tmp_path / "r")
    assert "column 'path' is missing" in message
    write_manifest(tmp_path / "m.csv", [Clip(0, str(folder / name.replace("31", "32")))])
    message = said(*PRETRAIN, "--manifest", tmp_path / "m.csv", "--optim.total-batch", 2, "--out", tmp_path / "r")
    assert shown in message
