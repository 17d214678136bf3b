"""What a machine for GPU tests and benchmarks must have installed, and what it need not."""

import ast
import contextlib
import importlib.metadata
import re
from pathlib import Path

import pytest
from processes import PROGRAMS, environment, run_program

HERE = Path(__file__).parent
DATA_PATH = ("av", "cv2", "decord", "PIL", "webdataset", "ray", "tyro", "matplotlib", "psutil", "pyarrow", "fsspec",
             "kaldi_native_fbank", "tensorboard", "torchaudio")  # fmt: skip


def run_without(libraries, *command):
    """Runs a program, or ``-m`` and a module, where importing any of the libraries fails as if it were not installed."""
    return run_program("without", ",".join(libraries), *command, cwd=HERE.parent)


@pytest.mark.slow
def test_gpu_tests_are_collected_without_the_data_path():
    """torch, numpy, einops, safetensors and pytest are enough."""
    arguments = ["-m", "gpu", "--collect-only", "-q", "-p", "no:cacheprovider", "tests"]
    done = run_without((*DATA_PATH, "rich"), "-m", "pytest", *arguments)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    counts = {file: int(count) for file, count in re.findall(r"^(tests/\S+\.py): (\d+)$", done.stdout, re.MULTILINE)}
    on_devices = re.compile(r"^from backends import .*\b(GPU|DEVICES|BACKENDS|each_backend)\b", re.MULTILINE)
    expected = {f"tests/kernels/{p.name}" for p in (HERE / "kernels").glob("test_*.py") if on_devices.search(p.read_text())}
    assert len(expected) > 8
    assert expected | {"tests/models/test_golden.py", "tests/training/test_step.py"} <= set(counts) and sum(counts.values()) > 500


@pytest.mark.slow
def test_a_step_and_the_kernels_are_measured_without_the_data_path():
    """rich, which prints the tables, is needed beside those."""
    done = run_without(DATA_PATH, PROGRAMS / "measure_a_step.py")
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_the_page_of_a_first_run_is_drawn_without_decoders(tmp_path):
    """matplotlib, which draws, and Pillow, which it needs, are there."""
    done = run_without(tuple(set(DATA_PATH) - {"matplotlib", "PIL"}), PROGRAMS / "draw_first_page.py", tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    page = (tmp_path / "page.html").read_text()
    assert "data:image/png" in page and "No pictures" not in page and "Dry run" not in page


def closure(names):
    """Distributions, and all that they need."""
    found, todo = set(), list(names)
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        if name not in found:
            found.add(name)
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                wanted = [r for r in importlib.metadata.requires(name) or () if "extra ==" not in r]
                todo += [re.match(r"[\w.-]+", r)[0] for r in wanted]
    return found


@pytest.mark.slow
def test_what_a_first_run_imports_is_carried_to_the_gpu(tmp_path):
    """By ``make gpu-wheels``; torch, Triton and NumPy are there."""
    tool = (HERE.parent / "tools" / "gpu_wheels.py").read_text()
    carried = ast.literal_eval(re.search(r"^NEEDED = (\(.*?\))", tool, re.MULTILINE | re.DOTALL)[1])
    done = run_program("distributions_of_a_first_run", env=environment(AVFMAE_FIRST_OUT=str(tmp_path)))
    assert done.returncode == 0, done.stderr[-3000:]
    imported = {re.sub(r"[-_.]+", "-", name).lower() for name in done.stdout.split()}
    optional = {"avfmae", "tqdm"}  # torch imports tqdm where it is
    assert "rich" in imported and imported - closure(["torch", "triton", "numpy", *carried]) - optional == set()


@pytest.mark.slow
@pytest.mark.parametrize("library", ["av", "PIL"])
def test_the_test_fails_where_a_library_is_needed(library):
    assert run_without((library,), "-m", "avfmae.data.sources").returncode != 0
