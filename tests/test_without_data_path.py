"""What a machine for GPU tests and benchmarks must have installed, and what it need not."""

import ast
import contextlib
import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
DATA_PATH = ("av", "cv2", "decord", "PIL", "webdataset", "ray", "tyro", "matplotlib", "psutil", "pyarrow", "fsspec",
             "kaldi_native_fbank", "tensorboard", "torchaudio")  # fmt: skip


def run_without(libraries, code):
    """Runs ``code`` where importing any of the libraries fails as if it were not installed."""
    hidden = f"import sys\nsys.modules.update(dict.fromkeys({libraries!r}))\n"
    return subprocess.run([sys.executable, "-c", hidden + code], capture_output=True, text=True, cwd=HERE.parent,
                          env=os.environ | {"OMP_NUM_THREADS": "1"})  # fmt: skip


def test_gpu_tests_are_collected_without_the_data_path():
    """torch, numpy, einops, safetensors and pytest are enough."""
    arguments = ["-m", "gpu", "--collect-only", "-q", "-p", "no:cacheprovider", "tests"]
    done = run_without((*DATA_PATH, "rich"), f"import pytest\nsys.exit(pytest.main({arguments!r}))")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    counts = {file: int(count) for file, count in re.findall(r"^(tests/\S+\.py): (\d+)$", done.stdout, re.MULTILINE)}
    on_devices = re.compile(r"^from backends import .*\b(GPU|DEVICES|BACKENDS|each_backend)\b", re.MULTILINE)
    expected = {f"tests/kernels/{p.name}" for p in (HERE / "kernels").glob("test_*.py") if on_devices.search(p.read_text())}
    assert len(expected) > 8
    assert expected | {"tests/models/test_golden.py", "tests/training/test_step.py"} <= set(counts) and sum(counts.values()) > 500


def test_a_step_and_the_kernels_are_measured_without_the_data_path():
    """rich, which prints the tables, is needed beside those."""
    code = """
from avfmae_benchmarks.kernels import KernelsConfig, kernels
from avfmae_benchmarks.step import StepConfig, step

step(StepConfig(size="tiny", sides=("ours",), precisions=("float32",), batch=2, rounds=1, warm_up=0, device="cpu", save=False))
kernels(KernelsConfig(only=("gated_sum",), precisions=("float32",), batch=1, rounds=1, device="cpu", save=False))
"""
    done = run_without(DATA_PATH, code)
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_page_of_a_first_run_is_drawn_without_decoders(tmp_path):
    """matplotlib, which draws, and Pillow, which it needs, are there."""
    code = f"""
from pathlib import Path
from avfmae_benchmarks import results
from avfmae_benchmarks.first.page import write
from avfmae_benchmarks.first.parts import Run

out = Path({str(tmp_path)!r})
row = dict(device="d", date="t", case="c", op="o", precision="float32",
    direction="forward", implementation="cpp", gflops=1.0, flops_per_byte=1.0)
results.append("kernels", [row | dict(copy_gb_per_s=1.0, matrix_gflops=9.0)], out)
write(Run(out, "cuda"))
"""
    done = run_without(tuple(set(DATA_PATH) - {"matplotlib", "PIL"}), code)
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


def test_what_a_first_run_imports_is_carried_to_the_gpu():
    """By ``make gpu-wheels``; torch, Triton and NumPy are there."""
    tool = (HERE.parent / "tools" / "gpu_wheels.py").read_text()
    carried = ast.literal_eval(re.search(r"^NEEDED = (\(.*?\))", tool, re.MULTILINE | re.DOTALL)[1])
    modules = [
        "doctor",
        *(
            f"benchmarks.{name}"
            for name in ("step", "kernels", "scaling", "plots", "first.ahead", "first.page", "first.recorded")
        ),
    ]
    imports = "\n".join(f"import avfmae_{m}" if m.startswith("benchmarks") else f"import avfmae.{m}" for m in modules)
    code = f"""
import importlib.metadata, os, tempfile
os.environ["AVFMAE_FIRST_OUT"] = tempfile.mkdtemp()
before = set(sys.modules)
{imports}
import avfmae.models.pretraining, pytest
owners = importlib.metadata.packages_distributions()
print(*(owner for name in set(sys.modules) - before if "." not in name for owner in owners.get(name, ())))
"""
    done = run_without((), code)
    assert done.returncode == 0, done.stderr[-3000:]
    imported = {re.sub(r"[-_.]+", "-", name).lower() for name in done.stdout.split()}
    assert "rich" in imported and imported - closure(["torch", "triton", "numpy", *carried]) - {"avfmae"} == set()


@pytest.mark.parametrize("library", ["av", "PIL"])
def test_the_test_fails_where_a_library_is_needed(library):
    assert run_without((library,), "import avfmae.data.sources").returncode != 0
