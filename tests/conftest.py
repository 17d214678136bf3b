"""Which tests can be collected here, and small real media files, made once a session."""

import importlib.util
import os
from fractions import Fraction
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # each core has a worker; must be set before torch is imported

import numpy as np
import pytest
import torch
from media_files import RATE, click, counted_frames, write_wav

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # Triton's kernels run in its interpreter; must be set before they are imported
HERE = Path(__file__).parent
# What tests import beside torch, numpy, einops, safetensors and pytest; a machine that is there to test kernels need not have it.
DATA_PATH = ("av", "cv2", "PIL", "rich", "tyro", "webdataset")
NEEDED = {
    "datasets": (*DATA_PATH, "openpyxl"),
    "inference": (*DATA_PATH, "matplotlib", "pyarrow"),
    "media": DATA_PATH,
    "media/test_audio.py": (),
    "media/test_augment.py": ("PIL",),
    "test_cli.py": DATA_PATH,
    "test_tables.py": DATA_PATH,
    "models/test_checkpoints.py": DATA_PATH,
    "models/test_weights.py": DATA_PATH,
    "stages": (*DATA_PATH, "matplotlib"),
    "tasks": (*DATA_PATH, "matplotlib"),
    "test_docs.py": (*DATA_PATH, "matplotlib", "pyarrow"),
    "test_packaging.py": DATA_PATH,
    "training/test_faults.py": DATA_PATH,
    "training/test_processes.py": DATA_PATH,
    "training/test_resume.py": DATA_PATH,
    "training/test_runlog.py": DATA_PATH,
    "training/test_training.py": DATA_PATH,
    "benchmarks/test_bench.py": (*DATA_PATH, "matplotlib"),
    "benchmarks/test_cluster.py": ("rich",),
    "benchmarks/test_tracing.py": ("rich",),
}


def missing(path: Path) -> list[str]:
    """The libraries that a test file needs and that are not installed."""
    place = path.relative_to(HERE)
    needed = NEEDED.get(place.as_posix(), NEEDED.get(place.parts[0], ()))
    return [name for name in needed if importlib.util.find_spec(name) is None]


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    place = collection_path.relative_to(HERE).as_posix() if collection_path.is_relative_to(HERE) else ""
    whole = place in NEEDED and not any(name.startswith(f"{place}/") for name in NEEDED)  # a folder without exceptions
    is_test = collection_path.name.startswith("test_") and collection_path.is_file()
    return True if (is_test or whole) and missing(collection_path) else None


def pytest_report_header() -> list[str]:
    lacking = sorted({name for path in NEEDED for name in missing(HERE / path)})
    return [f"tests that need {', '.join(lacking)} are left out, as these are not installed"] if lacking else []


@pytest.fixture(scope="session")
def media(tmp_path_factory):
    """name -> path."""
    from avfmae.datasets.drawn import encode

    root, files = tmp_path_factory.mktemp("media"), {}
    rng = np.random.default_rng(0)
    speech = 0.1 * rng.standard_normal(round(3.2 * RATE))

    def make(name, *args, **kwargs):
        files[name.replace(".", "_")] = str(root / name)
        encode(root / name, *args, **kwargs)

    make("good.mp4", counted_frames(80), speech, rate=RATE)
    make("good.mkv", counted_frames(80), speech, rate=RATE)
    make("good.flv", counted_frames(80), speech, rate=RATE)
    make("good.mpg", counted_frames(80), speech, rate=RATE)
    make("good.avi", counted_frames(80), speech, rate=RATE)
    make("click.mp4", counted_frames(100), click(1.5, 4.0), rate=RATE)
    make("click.mpg", counted_frames(100), click(1.5, 4.0), rate=RATE)
    make("silent.mp4", counted_frames(80), None)
    make("short_sound.mp4", counted_frames(80), click(0.2, 0.9), rate=RATE)
    make("short.mp4", counted_frames(20), click(0.2, 0.8), rate=RATE)
    make("slow.mp4", counted_frames(48), speech, fps=15, rate=RATE)
    make("fast.mp4", counted_frames(300), speech, fps=100, rate=RATE)
    make("ntsc.mp4", counted_frames(90), speech, fps=Fraction(30000, 1001), rate=RATE)
    make("decord_fails.mp4", counted_frames(80, 64, 96), speech, rate=RATE)  # at this size decord 3.4 miscounts its channels
    make("odd_size.mp4", counted_frames(80, 54, 178), np.stack([speech, -0.5 * speech]), rate=48_000)
    make("telephone.avi", counted_frames(80), speech[:25_600], rate=8_000)
    good = (root / "good.mp4").read_bytes()
    bad = {
        "empty.mp4": b"",
        "truncated.mp4": good[: len(good) // 2],
        "text.mp4": b"this is no video\n" * 50,
        "truncated.flv": (root / "good.flv").read_bytes()[: len((root / "good.flv").read_bytes()) // 3],
    }
    for name, content in bad.items():
        files[name.replace(".", "_")] = str(root / name)
        (root / name).write_bytes(content)
    files["missing"] = str(root / "missing.mp4")

    write_wav(root / "sound.wav", click(1.5, 4.0, 16_000)[0], 16_000)
    files["sound_wav"] = str(root / "sound.wav")
    return files
