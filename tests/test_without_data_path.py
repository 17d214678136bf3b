"""What a machine for GPU tests and benchmarks must have installed, and what it need not."""

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
    of_kernels = [p.name for p in (HERE / "kernels").glob("test_*.py") if "gpu" in p.read_text().lower()]
    expected = {f"tests/kernels/{name}" for name in of_kernels} - {"tests/kernels/test_build.py", "tests/kernels/test_cuda_logic.py"}
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


@pytest.mark.parametrize("library", ["av", "PIL"])
def test_the_test_fails_where_a_library_is_needed(library):
    assert run_without((library,), "import avfmae.data.decode").returncode != 0
