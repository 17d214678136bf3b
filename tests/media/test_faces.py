"""Faces: MTCNN finds what the package that its weights come from finds, on any number of frames; detectors are chosen by name."""

import csv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from avfmae.data import faces, mtcnn
from avfmae.data.clip import Clip
from avfmae.data.prepare import prepare_clip
from avfmae.options import PrepareConfig
from avfmae_benchmarks.faces import bench_faces
from avfmae_benchmarks.options import FacesConfig

DATA = Path(__file__).parents[1] / "data"
needs_weights = pytest.mark.skipif(not mtcnn.is_installed(), reason="the package mtcnn, whose weights it takes, is not installed")

# x1, y1, x2, y2 and the landmarks' x and y as mtcnn 1.0.0 gives them on TensorFlow 2.21, the most left face first.
GOLDEN = {
    "portrait": [
        [173.6, 67.18, 264.72, 203.42, 196.72, 239.61, 218.12, 200.42, 238.34, 118.24, 116.6, 140.38, 166.19, 165.46],
    ],
    "crowd": [
        [81.94, 213.27, 130.81, 280.28, 97.53, 120.55, 109.98, 99.25, 118.85, 238.93, 238.65, 249.7, 263.51, 263.64],
        [84.33, 33.47, 130.97, 102.36, 97.7, 119.62, 109.47, 99.34, 118.66, 58.66, 58.03, 69.08, 82.2, 81.98],
        [347.03, 31.92, 395.14, 98.74, 359.36, 381.44, 369.56, 360.67, 379.95, 58.3, 58.6, 70.05, 81.47, 82.47],
        [354.15, 212.52, 401.99, 279.73, 368.13, 390.33, 380.36, 369.98, 389.3, 239.19, 238.7, 249.88, 262.1, 262.28],
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def frames():
    """A face of CREMA-D; and four of half its size: as it is, mirrored, dark, at another place."""
    portrait = np.asarray(Image.open(DATA / "face.jpg"))
    half = portrait.reshape(180, 2, 240, 2, 3).mean((1, 3)).astype(np.uint8)
    return {"portrait": portrait, "crowd": np.block([[[half], [half[:, ::-1]]], [[half // 3], [np.roll(half, 30, 1)]]])}


@pytest.fixture(scope="module")
def detector():
    return mtcnn.MTCNN(smallest=0)


@needs_weights
@pytest.mark.parametrize("name", list(GOLDEN))
def test_mtcnn_finds_what_its_package_finds(name, frames, detector):
    boxes, scores, landmarks = detector([frames[name]])[0]
    order, golden = np.argsort(boxes[:, 0]), np.array(GOLDEN[name])
    assert len(boxes) == len(golden) and (scores > 0.99).all()
    corners = np.column_stack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]])[order]
    assert np.abs(corners - golden[:, :4]).max() < 0.5  # pixels; another JPEG decoder may round otherwise
    assert np.abs(landmarks[order] - golden[:, 4:].reshape(-1, 2, 5).transpose(0, 2, 1)).max() < 0.5


@needs_weights
def test_mtcnn_finds_the_same_in_a_batch(frames, detector):
    grey = np.full_like(frames["crowd"], 127)
    with torch.autocast("cpu", torch.bfloat16):  # as where a model evaluates meanwhile
        together = detector([frames["portrait"], grey, frames["crowd"]])
    assert [len(boxes) for boxes, _, _ in together] == [1, 0, 4]
    for found, name in zip(together[::2], frames, strict=True):
        for part, alone in zip(found, detector([frames[name]])[0], strict=True):
            assert np.abs(part - alone).max() < 1e-2


@pytest.mark.parametrize("size", [(150, 200), (37, 41), (13, 17)], ids=str)
def test_pictures_shrink_alike_on_every_device(size):
    """OpenCV on a CPU, products with matrices elsewhere."""
    pictures = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, 360, 480)).astype(np.float32))
    rows, columns = (mtcnn._area_weights(old, new, pictures.device) for old, new in zip((360, 480), size, strict=True))
    assert torch.allclose(mtcnn._shrink(pictures, *size), rows @ pictures @ columns.T, atol=1e-5)


@needs_weights
@pytest.mark.parametrize("size", [(8, 8), (24, 300), (21, 20)], ids=str)
def test_mtcnn_takes_frames_of_any_size(size, detector):
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    for boxes, _, landmarks in detector([noise, noise]):
        assert boxes.shape[1:] == (4,) and landmarks.shape[1:] == (5, 2)


@needs_weights
def test_prepare_aligns_faces_by_mtcnn(tmp_path):
    (tmp_path / "clip").mkdir()
    for number in range(16):
        (tmp_path / "clip" / f"{number}.jpg").write_bytes((DATA / "face.jpg").read_bytes())
    sample = prepare_clip(Clip(0, str(tmp_path / "clip")), PrepareConfig(tmp_path, tmp_path / "out", detector="mtcnn"))
    assert sample.row["flags"] == "no-audio" and sample.row["face_share"] == 1
    assert faces.iou([sample.row[f"face_{c}"] for c in "xywh"], (173.6, 67.2, 91.1, 136.2)) > 0.8  # from another pyramid


def test_without_the_package_haar_is_taken_and_said(monkeypatch, capsys):
    monkeypatch.setattr(mtcnn, "find_spec", lambda name: None)
    assert faces.chosen_detector("auto") == "haar" and "avfmae[faces]" in capsys.readouterr().err
    assert faces.chosen_detector("yunet") == "yunet"
    with pytest.raises(RuntimeError, match=r"pip install 'avfmae\[faces\]'"):
        mtcnn.MTCNN()


@needs_weights
@pytest.mark.slow
def test_the_comparison_of_detectors(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("avfmae_benchmarks.faces.CONDITIONS", bench_conditions("as they are", "turned by 45°", "a crowd of 4"))
    folder = tmp_path / "clip"
    folder.mkdir()
    (folder / "0.jpg").write_bytes((DATA / "face.jpg").read_bytes())
    with open(tmp_path / "clips.csv", "w", newline="") as file:
        csv.writer(file).writerows([["path", "face_x", "face_y", "face_w", "face_h"], ["clip", 153, 66, 130, 130]])
    rows = bench_faces(FacesConfig(tmp_path / "clips.csv", frames=1, rounds=1, out=tmp_path))
    found = {(row["condition"], row["detector"]): row["found"] for row in rows}
    assert all(found[name, "mtcnn"] == 1 for name in ("as they are", "turned by 45°", "a crowd of 4"))
    assert found["as they are", "haar"] == 1 and found["turned by 45°", "haar"] == 0
    assert (tmp_path / "faces.csv").exists() and "a crowd of 4" in capsys.readouterr().err


def bench_conditions(*names):
    from avfmae_benchmarks.faces import CONDITIONS

    return [condition for condition in CONDITIONS if condition.name in names]


def test_threads_may_share_a_detector(frames):
    """OpenCV works on one picture at a time in memory of the detector."""
    haar, pictures = faces.HaarDetector(), [frames["portrait"], frames["crowd"][::2, ::2]] * 20
    boxes = lambda picture: [face.box for face in haar([picture])[0]]  # noqa: E731
    alone = [boxes(picture) for picture in pictures[:2]] * 20
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(boxes, pictures)) == alone and any(alone)
