"""Engines are found by their names, one file each, and the package does without the CPU's."""

import dataclasses
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from processes import environment, run_python
from steps import random_batch, small

from avfmae import engines
from avfmae.engines.captured import EAGER_STEPS
from avfmae.training.config import RunConfig

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CPU = ["cpu"] if (ROOT / "avfmae" / "engines" / "cpu").is_dir() else []  # the package does without it


@pytest.fixture
def toys(monkeypatch):
    """The folder of a user's own engines beside the package's."""
    monkeypatch.setattr(engines, "__path__", [*engines.__path__, str(HERE / "toys")])


def test_an_engine_is_one_file(toys):
    assert engines.names() == ["auto", "eager", *sorted(["counting", *CPU, "cuda_graph"])]
    _, step = small()
    execute = engines.build("counting", step)
    losses = [float(execute([random_batch(k)])["loss"]) for k in range(3)]
    _, plain = small()
    assert losses == [float(plain([random_batch(k)])["loss"]) for k in range(3)] and execute.steps == 3


def test_the_default_on_a_cpu_is_the_step_as_it_is():
    _, step = small()
    assert engines.build(RunConfig().engine, step) is step and engines.build("eager", step) is step


@pytest.mark.parametrize(
    ("name", "world", "sharded", "eager"),
    [
        ("auto", 1, False, EAGER_STEPS), ("auto", 2, False, None), ("cuda_graph", 2, False, 11), ("cuda_graph", 2, True, None),
    ],
    ids=["one GPU", "several", "several, asked for", "sharded"],
)  # fmt: skip
def test_several_processes_are_captured_where_that_is_asked_for(name, world, sharded, eager, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    step = SimpleNamespace(
        device=torch.device("cuda"), world=world, shared=SimpleNamespace(casts=sharded), model=small()[0], signature=tuple
    )
    execute = engines.build(name, step)
    assert execute is step if eager is None else execute.eager_steps == eager
    assert ("parallel='fsdp'" in capsys.readouterr().err) == sharded


def test_an_unknown_engine_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=f"engine: got 'warp', expected one of auto, eager, {', '.join([*CPU, 'cuda_graph'])}"):
        engines.build("warp", small()[1])


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("cuda_graph", {}, "needs a GPU, and the model is on the cpu; steps run eagerly"),
        ("cpu", {"clip_grad": 1.0}, "weights are updated after the backward pass (clipping needs the norm of all gradients)"),
        ("cpu", {"betas": (0.9, 0.999)}, "moments stay float32 (8 bits are too coarse for betas 0.9 and 0.999)"),
    ],
    ids=["no GPU", "clipping", "fine-tuning's betas"],
)
def test_an_engine_that_cannot_serve_says_why_in_a_line(name, changes, reason, capsys):
    if name not in engines.names():
        pytest.skip("the package is without this engine")
    engines.build(name, small(**changes)[1])
    assert capsys.readouterr().err == f"avfmae: engine {name}: {reason}\n"


@pytest.mark.skipif(not CPU, reason="the package is without this engine")
def test_a_step_of_several_processes_or_another_device_is_given_back(capsys):
    _, step = small()
    step.device = torch.device("meta")
    assert engines.build("cpu", step) is step
    assert "the model is on meta, expected a CPU; steps run eagerly" in capsys.readouterr().err


def test_the_plain_step_asks_for_no_device():
    """It is what a reader who trains on GPUs reads: at most 150 lines, and not one condition on a device."""
    source = (ROOT / "avfmae" / "training" / "step.py").read_text()
    assert len(source.splitlines()) <= 150
    assert not any(word in source for word in ("cuda", "is_cpu", "device.type ==", "engines.cpu"))
    assert "engine" in {field.name for field in dataclasses.fields(RunConfig)}


@pytest.mark.exhaustive
@pytest.mark.skipif(not CPU, reason="it is gone already")
def test_the_package_does_without_the_cpu_engine(tmp_path):
    """Deleted from a copy of the tree, all tests of training and engines pass but the CPU engine's own."""
    own = shutil.ignore_patterns("__pycache__", "cpu")
    shutil.copytree(ROOT / "avfmae" / "engines", tmp_path / "avfmae" / "engines", ignore=own)
    shutil.copytree(HERE, tmp_path / "tests" / "engines", ignore=own)
    for folder in ("avfmae", "tests"):
        for path in (ROOT / folder).iterdir():
            if path.name not in ("engines", "__pycache__"):
                (tmp_path / folder / path.name).symlink_to(path)
    for name in ("avfmae_kernels", "benchmarks", "train", "pyproject.toml"):
        (tmp_path / name).symlink_to(ROOT / name)
    files = ["tests/engines", "tests/training/test_step.py"]
    done = run_python("-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", "not curve", *files, cwd=tmp_path,
                      env=environment(PYTHONPATH=str(tmp_path)))  # fmt: skip
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-2000:]
