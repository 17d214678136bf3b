"""Every shell and Python block of the texts: its commands and options are there, and it runs, or it says why no test runs it.

Above a block that no test runs stands ``<!-- not run by a test: why -->``; README.md has no room for that, and is told of here.
"""

import ast
import glob
import importlib
import re
import shlex
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

import avfmae
from avfmae import cli

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "csrc/README.md")] + sorted((ROOT / "docs").glob("*.md"))
NOT_RUN = {  # by the first words of a block of README.md
    "pip install torch": "installs; tests/test_packaging.py builds wheels and installs them",
    "pip install '.[faces]'": "trains for minutes; predict is run of docs/own_video.md",
    "avfmae dataset crema-d": "needs a data set and a released checkpoint",
}
FENCE = re.compile(
    r"^(<!-- not run by a test: (?P<why>.+) -->\n+)?```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    kind: str
    text: str
    why: str | None  # no test runs it

    def __str__(self):
        return f"{self.page.name}-{self.line}"


def blocks_of(page: Path) -> list[Block]:
    source, found = page.read_text(encoding="utf-8"), []
    for match in FENCE.finditer(source):
        why = match["why"] or next((why for begin, why in NOT_RUN.items() if match["text"].startswith(begin)), None)
        found.append(Block(page, source.count("\n", 0, match.start("text")), match["kind"], match["text"], why))
    return found


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
SHELL, PYTHON = ([block for block in BLOCKS if block.kind == kind] for kind in ("sh", "python"))


def commands(block: Block) -> list[list[str]]:
    """The words of each command, without comments and what is set for it."""
    lines = block.text.replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [w[next(i for i, word in enumerate(w) if not re.match(r"\w+=", word)) :] for w in words if w]


def check(words: list[str]) -> None:
    """AssertionError or SystemExit: there is no such command, or it has no such option."""
    program, *rest = words
    if program == "avfmae":
        command, *arguments = rest
        assert command in cli.COMMANDS, f"no command {command}"
        kind = cli.COMMANDS[command][1]
        if command == "bench":
            subjects = importlib.import_module("avfmae_benchmarks.command").SUBJECTS
            assert arguments[0] in subjects, f"no subject {arguments[0]}"
        elif kind is not None:
            cli.parse(cli.imported(kind), command, [word for word in arguments if word != "..."])
    elif program in ("torchrun", "sbatch"):
        script = next(i for i, word in enumerate(rest) if word.startswith("train/"))
        assert (ROOT / rest[script]).is_file()
        stage = Path(rest[script]).stem if program == "torchrun" else rest[script + 1]
        check(["avfmae", stage, *rest[script + 1 + (program == "sbatch") :]])
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert rest[0] in targets, f"no target {rest[0]}"
    elif program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        asked = re.findall(r"\[(.+?)\]", " ".join(rest))
        assert rest[0] == "install" and {name for some in asked for name in some.split(",")} <= set(extras)
    else:
        raise AssertionError(f"{program}: add to this test how it is checked")


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_commands_and_options_are_there(block, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "crema-d.toml").write_text('task = "classification"\n')  # as avfmae dataset writes it
    assert commands(block)
    for words in commands(block):
        check(words)


def test_a_wrong_option_is_found(capsys):
    with pytest.raises(SystemExit):
        check(["avfmae", "predict", "a.mp4", "--model", "m", "--no-such-option"])
    for words in (["avfmae", "no-such-command"], ["make", "no-such-target"], ["pip", "install", ".[no-such-extra]"]):
        with pytest.raises(AssertionError):
            check(words)


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_compiles_and_its_names_are_there(block):
    tree, modules = ast.parse(block.text), {"avfmae": avfmae}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.asname or alias.name: importlib.import_module(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            assert hasattr(modules[node.value.id], node.attr), f"{node.value.id} has no {node.attr}"


def test_tables_of_settings_are_toml():
    assert [tomllib.loads(block.text) for block in BLOCKS if block.kind == "toml"]


def test_blocks_are_of_known_kinds():
    assert {block.kind for block in BLOCKS} <= {"sh", "python", "toml", "csv", ""}
    assert len(SHELL) > 12 and len(PYTHON) > 5 and len([b for b in SHELL if not b.why]) > 4


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the files that the texts name: videos of a photograph, models of random weights, manifests."""
    from PIL import Image

    from avfmae.data.clip import Clip
    from avfmae.data.manifest import write_manifest
    from avfmae.datasets.drawn import encode

    folder = tmp_path_factory.mktemp("docs")
    photograph = np.asarray(Image.open(ROOT / "tests" / "data" / "face.jpg").convert("RGB"))
    frames = np.stack([np.roll(photograph, n // 4, axis=1) for n in range(60)])
    sound = 0.1 * np.random.default_rng(0).standard_normal(16_000 * 60 // 25)
    for name in ("talk", "a", "b"):
        encode(folder / f"{name}.mp4", frames, sound, rate=16_000)
    torch.manual_seed(0)
    demo = avfmae.ModelConfig.preset("demo")
    about = {"classes": ["calm", "glad", "sad"], "data": {"stride": 8}}
    for path in ("runs/mine", "runs/demo/3-finetuning-both-0"):
        made = avfmae.AVFMAEForFinetuning(demo, 3).save_pretrained(folder / path, **about)
    (made.parents[1] / "mine" / "model.safetensors").rename(folder / "runs/mine/weights.safetensors")
    for path in ("runs/pre", "runs/demo/1-pretraining"):
        avfmae.AVFMAEForPretraining(demo.replace(depth=10)).save_pretrained(folder / path, data={"stride": 8})
    clips = [Clip(i, str(folder / f"{name}.mp4"), label=label, split="test") for i, (name, label) in
             enumerate((("talk", "calm"), ("a", "glad"), ("b", "calm")))]  # fmt: skip
    write_manifest(folder / "clips.csv", clips)
    header, *rows = (folder / "clips.csv").read_text().splitlines()
    sexes = zip(rows, ("female", "male", "female"), strict=True)
    (folder / "test.csv").write_text("\n".join([f"{header},subject_sex", *(f"{row},{sex}" for row, sex in sexes)]))
    tiny = avfmae.AVFMAEForPretraining(avfmae.ModelConfig.preset("tiny"))
    torch.save({"model": avfmae.released_state_dict(tiny)}, folder / "checkpoint-99.pth")
    return folder


@pytest.fixture
def without_a_hub(monkeypatch):
    """Nothing is pushed."""
    from avfmae.checkpoints import pretrained

    class Hub:
        create_repo = upload_folder = lambda self, *args, **options: None
        HfApi = None

    Hub.HfApi = Hub
    monkeypatch.setattr(pretrained, "need", lambda *_: Hub)


RUN = sorted({block.page for block in BLOCKS if block.kind in ("sh", "python") and not block.why})


@pytest.mark.exhaustive
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_a_page_runs_from_top_to_bottom(page, place, without_a_hub, monkeypatch):
    """``base`` is replaced by ``tiny``; video and audio are those of the README."""
    for package in ("pandas", "onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    monkeypatch.chdir(place)
    cfg = avfmae.ModelConfig.preset("tiny")
    video = torch.randint(0, 256, (4, *cfg.video.size, 3), dtype=torch.uint8)
    model, masks = avfmae.AVFMAEForPretraining(cfg), avfmae.DualMask.sample(cfg, batch_size=4)
    names = {"avfmae": avfmae, "video": video, "audio": torch.randn(4, 1, *cfg.audio.size), "model": model, "masks": masks}
    for block in blocks_of(page):
        if block.why is None and block.kind == "python":
            exec(compile(block.text.replace('preset("base")', 'preset("tiny")'), str(block), "exec"), names)
        elif block.why is None and block.kind == "sh":
            for program, *rest in commands(block):
                assert program == "avfmae"
                cli.main([path for word in rest for path in (sorted(glob.glob(word)) if "*" in word else [word])])


def test_the_site_has_every_page():
    nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2].partition("\nhooks:")[0]
    pages = set(re.findall(r"[\w.]+\.md", nav))
    assert pages == {path.name for path in (ROOT / "docs").glob("*.md")} | {"index.md", "kernels.md"}


@pytest.mark.exhaustive
def test_the_site_is_built_without_a_warning(tmp_path):
    """In the environment that `make docs` makes."""
    mkdocs = ROOT / ".venv-docs" / "bin" / "mkdocs"
    if not mkdocs.is_file():
        pytest.skip("make docs has not been run: it makes .venv-docs")
    command = [mkdocs, "build", "--strict", "--quiet", "--site-dir", tmp_path / "site"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    api = (tmp_path / "site" / "api" / "index.html").read_text()
    assert 'id="avfmae.inference.predictor.Predictor.from_pretrained"' in api and ":class:<code>" not in api
    start = (tmp_path / "site" / "index.html").read_text()
    assert "images/app.png" in start and (tmp_path / "site" / "images" / "app.png").is_file()
