"""The command line as a user meets it: help that reads well, and one clear line for everything they can put right."""

import contextlib
import csv
import re
import sys
from dataclasses import replace

import pytest
import torch
from processes import run_program

import avfmae
import avfmae_kernels
from avfmae.checkpoints import save_weights
from avfmae.cli import COMMANDS, main, parse
from avfmae.data.clip import Clip
from avfmae.data.manifest import read_manifest, write_manifest
from avfmae.help import FIRST, options
from avfmae.recipes import configuration, recipe_folder, recipes
from avfmae.stages.config import FinetuneConfig, PretrainConfig, PSIConfig

SUBJECTS = ("step", "kernels", "loader", "scaling", "plot")
STAGES = {"pretrain": PretrainConfig, "psi": PSIConfig, "finetune": FinetuneConfig}
HEAVY = {"torch", "av", "cv2", "matplotlib", "pyarrow", "triton", "decord"}  # what takes long to import


def fails(capsys, *arguments):
    """The one line that a failing command leaves."""
    with pytest.raises(SystemExit) as caught:
        main([str(a) for a in arguments])
    message = caught.value.code if isinstance(caught.value.code, str) else capsys.readouterr().err
    assert "Traceback" not in message
    return message


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    try:
        main([command, "--help"])
    except SystemExit as done:
        assert done.code == 0
    text = capsys.readouterr().out
    assert "usage" in text.lower() and len(text) > 60


def test_top_help_names_every_command(capsys):
    main(["--help"])
    text = capsys.readouterr().out
    assert all(f"  {command} " in text for command in COMMANDS)
    assert "no command 'train'" in fails(capsys, "train")


def loaded_by(*arguments: str) -> set[str]:
    """Which of the heavy packages a fresh interpreter has imported after a command, or a name of the package."""
    done = run_program("loaded_modules", *arguments, check=True)
    assert "avfmae" in done.stdout.split()
    return HEAVY & set(done.stdout.split())


def test_the_package_is_imported_without_torch_and_gives_every_name():
    assert not loaded_by("--name", "__version__")
    assert {"AVFMAEForPretraining", "ModelConfig", "load_released"} <= set(avfmae.__all__)
    assert all(getattr(avfmae, name) is not None for name in avfmae.__all__)
    with pytest.raises(AttributeError, match="Predictr"):
        avfmae.Predictr  # noqa: B018


@pytest.mark.parametrize("command", ["", *COMMANDS, *(f"bench {subject}" for subject in SUBJECTS)])
def test_help_needs_neither_torch_nor_decoders(command):
    assert not loaded_by("--command", *command.split(), "--help")


@pytest.mark.parametrize("stage", STAGES)
def test_help_of_a_stage_shows_first_what_one_needs(stage, capsys):
    """Every option stands in one of two parts, with the defaults of the recipe that is given."""
    with pytest.raises(SystemExit):
        main([stage, "--help", "--recipe", "huge"])
    first, rare = capsys.readouterr().out.split("What one rarely touches:")
    manifest = "--manifests " if stage == "psi" else "--manifest "
    for option in (manifest, "--out ", "--preset ", "--recipe ", "--init ", "--optim.epochs ", "--data.workers "):
        assert option in first and option not in rare
    for option in (
        "--optim.betas ",
        "--data.mixed-shards ",
        "--model.token-order ",
        "--model.video.visible ",
        "--stop-after ",
        "--log-steps ",
    ):
        assert option in rare and option not in first
    assert "(default: huge)" in " ".join(first.split()) and "usage" in first and "usage" not in rare


@pytest.mark.parametrize("stage", STAGES)
def test_help_shows_every_option_once(stage, capsys):
    with pytest.raises(SystemExit):
        main([stage, "--help"])
    shown = re.findall(r"--([a-z_.-]+)", "\n".join(re.findall(r"^\W*--.*", capsys.readouterr().out, re.MULTILINE)))
    names = [name.replace("_", "-") for name in options(STAGES[stage])]
    assert not [name for name in names if shown.count(name) != 1]
    assert len(names) > 60 and {"optim.lr", "data.workers", "model.video.visible"} <= set(names)


def test_options_that_come_first_exist():
    assert set().union(*(options(kind) for kind in STAGES.values())) >= FIRST  # an option that was renamed is noticed


def test_doctor_takes_no_options(capsys):
    assert "takes no options, got --foo" in fails(capsys, "doctor", "--foo")


@pytest.mark.parametrize("width", [80, 250])
@pytest.mark.parametrize("command", ["", *COMMANDS, *(f"bench {subject}" for subject in SUBJECTS)])
def test_help_fits_the_terminal(command, width, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    with contextlib.suppress(SystemExit):
        main([*command.split(), "--help"])
    assert 20 < max(map(len, capsys.readouterr().out.splitlines())) <= width


def test_top_help_is_in_groups(capsys):
    main(["--help"])
    text = capsys.readouterr().out
    order = [
        "To begin with",
        "  demo ",
        "Data",
        "  prepare ",
        "Training",
        "  pretrain ",
        "A trained model",
        "  evaluate ",
        "This machine",
    ]
    places = [text.index(words) for words in order]
    assert places == sorted(places) and max(map(len, text.splitlines())) <= 120


@pytest.mark.slow
def test_heavy_packages_are_seen_where_they_are_loaded():
    assert loaded_by("--name", "DualMask") >= {"torch"}


@pytest.mark.parametrize(("stage", "name"), [(stage, name) for stage in STAGES for name in recipes(stage)])
def test_every_recipe_is_read(stage, name):
    config = parse(STAGES[stage], stage, ["--recipe", name])
    drop_path = 0.0 if stage == "pretrain" else 0.1
    assert (config.recipe, config.preset) == (name, name)
    assert config.model == avfmae.ModelConfig.preset(name).replace(drop_path=drop_path)
    assert config.optim.lr == (1e-3 if stage != "pretrain" else 2e-4 if name == "huge" else 3e-4)


def test_recipes_lie_where_they_are_edited():
    """In a source tree; tests/test_packaging.py looks for them in a wheel."""
    found = {f"{name}_{stage}.toml" for stage in STAGES for name in recipes(stage)}
    assert found == {p.name for p in recipe_folder().glob("*.toml") if "label_map" not in p.name} and len(found) == 30


def test_a_package_that_is_not_installed_is_named(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    message = fails(capsys, "pretrain", "--preset", "tiny", "--manifest", "memory://clips.csv", "--out", tmp_path)
    assert message == "avfmae pretrain: the package fsspec is not installed"


def test_an_unknown_recipe_is_named_with_those_there_are(capsys):
    message = fails(capsys, "finetune", "--recipe", "hicmae_large")
    assert "--recipe: got 'hicmae_large', expected one of ablation_dier, ablation_hafe, " in message
    assert "hicmae_base, huge, large, mae_dfer, svfap for finetune" in message


def test_the_file_overrides_the_recipe_and_the_command_line_both(tmp_path):
    (tmp_path / "mine.toml").write_text("[optim]\nepochs = 7\nlr = 1e-4\n")
    run = parse(PretrainConfig, "pretrain", ["--recipe=huge", "--config", str(tmp_path / "mine.toml"), "--optim.lr", "2e-4"])
    recipe = configuration(PretrainConfig, "pretrain", "huge")
    assert (run.preset, run.optim.epochs, run.optim.lr) == ("huge", 7, 2e-4)
    assert run.optim.total_batch == recipe.optim.total_batch and recipe.optim.epochs != 7


def test_the_command_line_overrides_the_file_and_the_file_the_defaults(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text('preset = "large"\n[optim]\nepochs = 7\nbetas = [0.8, 0.9]\n[data]\nstride = 3\n')
    run = parse(FinetuneConfig, "finetune", ["--config", str(path), "--optim.epochs", "9"])
    assert (run.preset, run.optim.epochs, run.optim.betas, run.data.stride) == ("large", 9, (0.8, 0.9), 3)
    assert run.optim.layer_decay == 0.75 and run.optim.lr == 1e-3  # fine-tuning's own defaults, where the table is silent


@pytest.mark.parametrize("kind", STAGES.values(), ids=STAGES)
def test_the_preset_gives_the_model_with_the_defaults_of_the_stage(kind):
    tiny, drop_path = avfmae.ModelConfig.preset("tiny"), 0.0 if kind is PretrainConfig else 0.1
    assert kind(preset="tiny").model == tiny.replace(drop_path=drop_path)
    assert kind(preset="tiny", model=tiny.replace(depth=5)).model == tiny.replace(depth=5)  # what is given stays as it is
    assert replace(kind(preset="tiny"), seed=3).model == tiny.replace(drop_path=drop_path)


PRESETS_AND_FIELDS = {  # recipe and file (of which the recipe is always huge), command line -> preset, depth, visible, decoder
    "recipe": ("", [], ("huge", 15, 80, 640)),
    "file over recipe": ("preset = 'tiny'", [], ("tiny", 4, 32, 64)),
    "command line over file": ("preset = 'tiny'", ["--preset", "large"], ("large", 12, 80, 512)),
    "fields of the file's preset": (
        "preset = 'base'\n[model]\ndepth = 11\n[model.video]\nvisible = 96", [], ("base", 11, 96, 384),
    ),
    "fields of the file in the command line's preset": ("[model]\ndepth = 11", ["--preset=base"], ("base", 11, 80, 384)),
    "fields of the command line over the file's": (
        "[model]\ndepth = 16\nrecompute = 'full'\n[model.video]\nvisible = 96",
        ["--model.depth", "17", "--model.video.visible", "160"],
        ("huge", 17, 160, 640),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "arguments", "expected"), PRESETS_AND_FIELDS.values(), ids=PRESETS_AND_FIELDS)
def test_fields_of_the_model_go_over_the_preset(text, arguments, expected, tmp_path):
    (tmp_path / "mine.toml").write_text(text)
    run = parse(PSIConfig, "psi", ["--recipe", "huge", "--config", str(tmp_path / "mine.toml"), *arguments])
    model = run.model
    assert (run.preset, model.depth, model.video.visible, model.decoder_width) == expected
    assert model.video.decoded * 2 == model.video.tokens and model.drop_path == 0.1
    assert model.recompute == ("full" if "full" in text else "none")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model.depth", "0"], "model: depth: got 0, expected at least 1"),
        (["--model.heads", "3"], "model: heads: 3 does not divide the width 512"),
        (["--model.drop-path", "1.5"], "model: drop_path: got 1.5, expected a rate from 0 to below 1"),
        (["--model.video.visible", "88"], "video.visible: got 88 of 800 tokens, expected fewer, a multiple of 16"),
        (["--model.audio.patch", "16"], "expected 2 positive numbers for each of size, patch and region"),
        (["--model.dept", "3"], "Unrecognized options: --model.dept"),
        (["--model.recompute", "all"], "--model.recompute"),
    ],
    ids=lambda v: v[0].removeprefix("--model.") if isinstance(v, list) else "",
)
def test_a_bad_model_is_named_on_the_command_line(arguments, words, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    assert words in fails(capsys, "pretrain", *arguments)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("presett = 'base'", "unknown key 'presett'"),
        ("[optim]\nlearning_rate = 1", "[optim]: unknown key 'learning_rate'"),
        ("[optim]\nlr = 'high'", "lr is 'high', expected float"),
        ("preset = 3", "preset is 3, expected str"),
        ("[model]\ndept = 3", "[model]: unknown key 'dept'; known are modalities, encoder, fusion, width"),
        ("[model]\ndepth = 'deep'", "[model]: depth is 'deep', expected int"),
        ("[model]\ndepth = 3", "[model]: skip_blocks: got (3, 6, 9), expected ascending block numbers below depth 3"),
        ("[model.video]\nvisible = 0.5", "[model] [video]: visible is 0.5, expected int"),
        ("optim = 1", "expected a table"),
        ("precision = 'fp8'", "precision is 'fp8'"),
        ("log_steps = 0", "log_steps: got 0, expected at least 1"),
        ("[optim]\ntotal_batch = 0", "[optim]: total_batch: got 0, expected at least 1"),
        ("[optim]\nlr = nan", "[optim]: lr: got nan, expected at least 0"),
        ("[data]\nworkers = -1", "[data]: workers: got -1, expected at least 0"),
        ("[data]\nflip = 1.5", "[data]: flip: got 1.5, expected 0 to 1"),
        ("[data]\nmulti_scales = []", "[data]: multi_scales: got ()"),
        ("[data]\ncrop_scale = [0, 0]", "[data]: crop_scale: got (0.0, 0.0)"),
        ("[data]\nrand_augment = [7, -1]", "[data]: rand_augment: got (7.0, -1)"),
        ("[optim]\nbetas = [0.9, 1]", "[optim]: betas: got (0.9, 1.0)"),
        ("preset =", "is no TOML"),
        ("recipe = 'base'", "'recipe' goes on the command line"),
    ],
    ids=lambda value: value.replace("\n", " ") if "=" in value else "",
)
def test_a_bad_configuration_is_named(text, words, tmp_path, capsys):
    (tmp_path / "bad.toml").write_text(text)
    message = fails(capsys, "pretrain", "--config", tmp_path / "bad.toml")
    assert words in message and "bad.toml" in message


def test_missing_files_are_named(tmp_path, capsys):
    assert "no such configuration file" in fails(capsys, "pretrain", "--config", tmp_path / "no.toml")
    assert "no such manifest" in fails(
        capsys, "pretrain", "--preset", "tiny", "--manifest", tmp_path / "no.csv", "--out", tmp_path
    )
    assert "manifest: is not set" in fails(capsys, "finetune", "--preset", "tiny")
    assert "no such list" in fails(capsys, "import-list", tmp_path / "a.txt", tmp_path / "b.csv")
    assert "preset: got 'colossal'" in fails(capsys, "pretrain", "--preset", "colossal", "--manifest", tmp_path / "no.csv")


def test_a_manifest_without_its_column_is_named(tmp_path, capsys):
    (tmp_path / "m.csv").write_text("file\na.mp4\n")
    message = fails(capsys, "pretrain", "--preset", "tiny", "--manifest", tmp_path / "m.csv", "--out", tmp_path / "run")
    assert "m.csv: column 'path' is missing; it has file" in message


@pytest.mark.parametrize("name", ["missing", "empty_mp4", "truncated_mp4", "text_mp4", "silent_mp4"])
def test_bad_media_are_named_on_the_command_line(name, media, tmp_path, capsys):
    write_manifest(tmp_path / "m.csv", [Clip(0, media[name])])
    message = fails(capsys, "pretrain", "--preset", "tiny", "--manifest", tmp_path / "m.csv", "--out", tmp_path / "run",
                    "--data.workers", "0", "--optim.total-batch", "2")  # fmt: skip
    reason = {
        "missing": "no such file",
        "empty_mp4": "is empty",
        "truncated_mp4": "readable media file",
        "text_mp4": "readable media file",
        "silent_mp4": "has no audio track",
    }[name]
    assert media[name] in message and reason in message


def test_bad_media_in_a_worker_are_named_too(media, tmp_path, capsys):
    write_manifest(tmp_path / "m.csv", [Clip(0, media["empty_mp4"])])
    message = fails(capsys, "pretrain", "--preset", "tiny", "--manifest", tmp_path / "m.csv", "--out", tmp_path / "run",
                    "--data.workers", "1", "--optim.total-batch", "2")  # fmt: skip
    assert "is empty" in message


@pytest.mark.parametrize("content", [b"", b"no weights"], ids=["empty", "text"])
def test_corrupt_weights_are_named(content, media, tmp_path, capsys):
    (tmp_path / "w.pth").write_bytes(content)
    write_manifest(tmp_path / "m.csv", [Clip(0, media["good_mp4"])])
    message = fails(
        capsys,
        "pretrain",
        "--preset",
        "tiny",
        "--manifest",
        tmp_path / "m.csv",
        "--out",
        tmp_path / "run",
        "--init",
        tmp_path / "w.pth",
    )
    assert "w.pth: is no readable checkpoint" in message


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    model = avfmae.AVFMAEForFinetuning(avfmae.ModelConfig.preset("tiny"), 3)
    save_weights(
        model, tmp_path / "weights.safetensors", classes=["a", "b", "c"], task="classification", modalities=["video", "audio"]
    )
    return tmp_path / "weights.safetensors"


def test_own_videos_are_evaluated(weights, media, tmp_path, capsys):
    videos = [media[name] for name in ("good_mp4", "short_mp4", "text_mp4")]
    message = fails(capsys, "evaluate", weights, *videos, "--out", tmp_path / "p.csv", "--workers", "0")
    assert "1 of 3 clips could not be read" in message
    with open(tmp_path / "p.csv") as file:
        *rows, bad = csv.DictReader(file)
    assert [r["path"] for r in rows] == [media["good_mp4"], media["short_mp4"]]
    assert bad["path"] == media["text_mp4"] and "no readable media" in bad["note"] and bad["prediction"] == ""
    assert all(abs(sum(float(r[c]) for c in "abc") - 1) < 1e-3 and float(r[r["prediction"]]) >= 1 / 3 for r in rows)
    with pytest.raises(SystemExit):
        main(["evaluate", str(weights), *videos, "--workers", "0"])
    assert f"cannot read {media['text_mp4']}" in capsys.readouterr().err


def test_labelled_manifests_give_metrics(weights, media, tmp_path, capsys):
    clips = [Clip(i, media[n], label=label) for i, (n, label) in enumerate((("good_mp4", "a"), ("short_mp4", "b")))]
    write_manifest(tmp_path / "m.csv", clips)
    main(["evaluate", str(weights), str(tmp_path / "m.csv"), "--workers", "0"])
    assert "UAR" in capsys.readouterr().err
    write_manifest(tmp_path / "m.csv", [replace(clips[0], path=media["empty_mp4"])])
    assert "none of the 1 clips can be read" in fails(capsys, "evaluate", weights, tmp_path / "m.csv", "--workers", "0")


def test_pretraining_weights_are_no_classifier(tmp_path, capsys):
    save_weights(avfmae.AVFMAEForPretraining(avfmae.ModelConfig.preset("tiny")), tmp_path / "w.safetensors")
    assert "is not the result of a fine-tuning" in fails(capsys, "evaluate", tmp_path / "w.safetensors", "x.mp4")


def test_lists_are_imported(tmp_path, capsys):
    (tmp_path / "list.txt").write_text("/v/a.mp4 0\n")
    main(["import-list", str(tmp_path / "list.txt"), str(tmp_path / "m.csv")])
    assert read_manifest(tmp_path / "m.csv") == [Clip(0, "/v/a.mp4", label="0")]


def test_doctor_tells_what_runs(capsys):
    main(["doctor"])
    text = capsys.readouterr().out
    assert torch.__version__ in text and "gather_patches" in text and "runs" in text
    rows = [line for line in text.splitlines() if line.startswith("│")]
    ops = list(avfmae_kernels.explain())
    assert [row.split("│")[1].strip() for row in rows] == ops and max(map(len, rows)) <= 100  # a line an op


@pytest.mark.slow
def test_the_module_runs_without_compiled_parts():
    """As after AVFMAE_BUILD=none: everything works, and the doctor says what is missing."""
    done = run_program("without_compiled")
    assert done.returncode == 0 and "is missing" in done.stdout and "plain PyTorch runs" in done.stderr, done.stderr
