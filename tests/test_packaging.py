"""What is installed: every package and recipe, without what only some need, and honest about the oldest versions."""

import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import processes
import pytest
import torch

from avfmae.data.clip import Clip
from avfmae.data.manifest import write_manifest
from avfmae.data.prepare import PrepareConfig, prepare
from avfmae.training.runlog import RunLog
from avfmae_kernels import processor

pytestmark = pytest.mark.xdist_group("packaging")  # which builds a wheel, once
ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NOT_IN_AN_SDIST = {".ci/run", ".gitignore", ".pre-commit-config.yaml"}
# Where a wheel has what lies elsewhere in the source tree.
TABLES = ("avfmae/datasets/published.csv", "avfmae_kernels/measured.csv")
INSTALLED = {
    "avfmae/": "avfmae/",
    "avfmae_kernels/": "avfmae_kernels/",
    "benchmarks/": "avfmae_benchmarks/",
    "train/configs/": "avfmae/configs/",
}


def run(*command: object, cwd: Path, **environment: str) -> str:
    """The output of a command that must succeed, apart from this source tree."""
    variables = {k: v for k, v in processes.environment(**environment).items() if k != "PYTHONPATH"}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def source_files() -> set[str]:
    """What git has, or would have: of a tree that is no repository nothing can be said."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this source tree is no git repository")
    return {name for name in listed.stdout.split("\n") if name and (ROOT / name).exists()}


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    """An sdist of the working tree, built in a copy of it."""
    tree = tmp_path_factory.mktemp("source")
    for name in source_files():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tree / name)
    run(sys.executable, "setup.py", "--quiet", "sdist", cwd=tree)
    return next((tree / "dist").glob("*.tar.gz"))


@pytest.fixture(scope="module")
def unpacked(sdist, tmp_path_factory) -> Path:
    with tarfile.open(sdist) as file:
        file.extractall(folder := tmp_path_factory.mktemp("sdist"), filter="data")
    return next(folder.iterdir())


@pytest.fixture(scope="module")
def wheel(unpacked, tmp_path_factory) -> Path:
    """A wheel of the sdist, compiled for this processor where there is a compiler."""
    out = tmp_path_factory.mktemp("wheel")
    level = (processor.module() or "_cpu_avx2").removeprefix("_cpu_")
    chosen = "cpu" if torch.version.cuda else "auto"  # CUDA takes minutes, and has checks of its own
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", out, ".", cwd=unpacked,
        AVFMAE_BUILD=chosen, AVFMAE_CPU_LEVELS=level)  # fmt: skip
    return next(out.glob("*.whl"))


@pytest.mark.slow
def test_an_sdist_has_every_file(sdist):
    with tarfile.open(sdist) as file:
        found = {m.name.partition("/")[2] for m in file.getmembers() if m.isfile()}
    made = {name for name in found if name in ("PKG-INFO", "setup.cfg") or ".egg-info/" in name}
    assert found - made == source_files() - NOT_IN_AN_SDIST


@pytest.mark.slow
def test_a_wheel_has_every_module_recipe_and_licence(wheel):
    with zipfile.ZipFile(wheel) as file:
        found = set(file.namelist())
    wanted = {
        installed + name.removeprefix(here)
        for here, installed in INSTALLED.items()
        for name in source_files()
        if name.startswith(here) and (name.endswith((".py", ".pyi", ".toml", "py.typed")) or name in TABLES)
    }
    # No package is left out, as one of the kernels once was.
    assert {
        "avfmae/configs/base_pretrain.toml",
        "avfmae/py.typed",
        "avfmae/__init__.pyi",
        "avfmae_kernels/matmul/__init__.py",
    } <= wanted
    compiled = {name for name in found if name.startswith("avfmae_kernels/") and name.endswith((".so", "_build.json"))}
    about = {name for name in found if ".dist-info/" in name}
    assert found - compiled - about == wanted
    assert any(name.endswith("licenses/LICENSE") for name in about) and "avfmae_kernels/_build.json" in compiled


@pytest.mark.slow
def test_a_wheel_of_an_sdist_works_in_a_fresh_environment(wheel, media, tmp_path):
    """Every module imports, the doctor speaks, the recipes are found, and a step of fine-tuning is made; all from the wheel."""
    run(sys.executable, "-m", "venv", "--without-pip", "fresh", cwd=tmp_path)
    python = tmp_path / "fresh" / "bin" / "python"
    base = str(tmp_path / "fresh")
    site = Path(sysconfig.get_path("purelib", "venv", {"base": base, "platbase": base}))
    # The dependencies are this environment's, seen by a path: its own avfmae, installed for editing, is not.
    (site / "dependencies.pth").write_text("\n".join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}))
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=tmp_path)

    number, file = run(python, processes.PROGRAMS / "import_all.py", cwd=tmp_path).split()
    assert Path(file).is_relative_to(site) and int(number) > 90
    avfmae = tmp_path / "fresh" / "bin" / "avfmae"
    assert str(site / "avfmae" / "configs") in run(avfmae, "doctor", cwd=tmp_path, COLUMNS="300")

    clips = [
        Clip(i, media[name], label=label, split=split)
        for i, (name, label, split) in enumerate(
            (("good_mp4", "a", "train"), ("short_mp4", "b", "train"), ("good_mkv", "a", "test"), ("slow_mp4", "b", "test"))
        )
    ]
    write_manifest(tmp_path / "clips.csv", clips)
    small = (
        "--preset",
        "tiny",
        "--optim.epochs",
        "1",
        "--optim.total-batch",
        "2",
        "--optim.micro-batch",
        "2",
        "--val-share",
        "0",
        "--data.workers",
        "0",
        "--data.segments",
        "1",
        "--data.crops",
        "1",
    )
    run(avfmae, "finetune", "--recipe", "base", *small, "--manifest", "clips.csv", "--out", "run", cwd=tmp_path)
    assert (tmp_path / "run" / "weights.safetensors").exists() and (tmp_path / "run" / "results.json").exists()


@pytest.mark.slow
def test_without_triton_everything_imports_and_the_kernels_say_so(tmp_path):
    assert run(sys.executable, processes.PROGRAMS / "import_all_without_triton.py", cwd=tmp_path)


def test_extras_that_are_missing_are_named(tmp_path, monkeypatch):
    for module in ("tensorboard", "ray", "kaldi_native_fbank"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(RuntimeError, match=r"--tensorboard needs tensorboard: pip install 'avfmae\[tensorboard\]'"):
        RunLog(tmp_path, steps=1, first_step=0, title="run", active=True, tensorboard=True)
    write_manifest(tmp_path / "clips.csv", [Clip(0, "a.mp4")])
    with pytest.raises(RuntimeError, match=r"--engine ray needs ray: pip install 'avfmae\[ray\]'"):
        prepare(PrepareConfig(tmp_path / "clips.csv", tmp_path / "set", engine="ray"))
    named = {e for p in (ROOT / "avfmae").rglob("*.py") for e in re.findall(r"avfmae\[([a-z]+)\]", p.read_text())}
    assert {"tensorboard"} <= named <= set(PROJECT["optional-dependencies"])


def floors() -> dict[str, str]:
    """The oldest version that is allowed of every requirement that names one."""
    lines = [*PROJECT["dependencies"], *(line for extra in PROJECT["optional-dependencies"].values() for line in extra)]
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    found = [re.match(r"([\w.-]+)>=([\w.]+)", line) for line in lines + build]
    return {m[1]: m[2] for m in found if m}


def test_every_requirement_has_a_floor_and_the_oldest_versions_are_tested():
    without = [line for line in PROJECT["dependencies"] if not re.match(r"[\w.-]+>=", line)]
    assert not without, f"no floor: {without}"
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "constraints-oldest.txt").read_text(), re.MULTILINE))
    assert floors().keys() == pins.keys()
    release = {name: tuple(map(int, version.split("."))) for name, version in pins.items()}
    for name, floor in floors().items():
        parts = tuple(map(int, floor.split(".")))
        assert release[name][: len(parts)] == parts and not any(release[name][len(parts) :]), (
            f"{name}: >={floor}, tested with {pins[name]}"
        )


@pytest.mark.slow
def test_kernels_of_other_sources_are_not_run(tmp_path):
    """A tree that was pulled and not built again: a kernel of another schema would fail in the middle of a step."""
    for name in ("avfmae_kernels", "csrc"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    if not list((tmp_path / "avfmae_kernels").glob("_cpu*.so")):
        pytest.skip("no kernels were built")
    code = "import avfmae_kernels.dispatch as d, torch; print(d.__file__, d.choose('gated_sum', torch.device('cpu')))"
    for changed, runs in ((False, "cpp"), (True, "reference")):
        with open(tmp_path / "csrc" / "module.cpp", "a") as source:
            source.write("// changed\n" * changed)
        run(sys.executable, "setup.py", "--version", cwd=tmp_path)  # as a build that is broken off before it compiles
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env=processes.environment(PYTHONPATH=str(tmp_path)),
            capture_output=True,
            text=True,
        )
        assert done.stdout.split() == [str(tmp_path / "avfmae_kernels" / "dispatch.py"), runs], done.stderr
        assert ("csrc has changed since the kernels were built; `pip install -e .`" in done.stderr) == changed
