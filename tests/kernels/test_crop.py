"""Clips seen through boxes: the plain way against Pillow, and every implementation that fuses it against float64 loops."""

import numpy as np
import pytest
import test_gather_patches as gather
import test_masked_patch_loss as loss
import torch
from backends import each_backend, interpreted, require

import avfmae_kernels as K
from avfmae_kernels import crop_clips

pytestmark = pytest.mark.isa

CASES = {  # stored frames, boxes, size of the crop
    "smaller": ((176, 176), [(10.0, 20.0, 126.5, 136.25), (0.0, 0.0, 176.0, 176.0)], (160, 160)),
    "much smaller": ((90, 160), [(0.0, 0.0, 160.0, 90.0), (33.3, 5.1, 158.9, 80.0)], (32, 48)),
    "larger": ((40, 30), [(3.0, 4.0, 20.0, 35.0), (10.0, 1.5, 30.0, 8.0)], (48, 32)),
    "as it is": ((32, 48), [(0.0, 0.0, 48.0, 32.0), (0.0, 0.0, 48.0, 32.0)], (32, 48)),
}
# What stands for the first two in Triton's interpreter.
FEW = (60, 50), [(3.0, 4.0, 45.0, 55.0), (0.0, 0.0, 50.0, 60.0)], (32, 32)
# Relative; of ten thousand means a few lie so near the border of two levels that float32 rounds them the other way.
ROUNDED = 1e-3
each_case = pytest.mark.parametrize(("stored", "boxes", "size"), CASES.values(), ids=CASES)


def clip(stored, frames=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (2, frames, *stored, 3), dtype=torch.uint8, generator=g)


def by_hand(video, boxes, size):
    """The crop in float64, place by place."""
    out = np.zeros((len(video), video.shape[1], *size, 3))
    for b, (left, top, right, bottom) in enumerate(boxes):
        frame = video[b].double().numpy()
        for axis, (low, high, places) in enumerate(((top, bottom, size[0]), (left, right, size[1])), 1):
            step, lines = (high - low) / places, []
            for i in range(places):
                centre = low + (i + 0.5) * step
                weights = np.maximum(0, 1 - np.abs(np.arange(frame.shape[axis]) + 0.5 - centre) / max(1, step))
                lines.append(np.tensordot(frame, weights / weights.sum(), (axis, 0)))
            frame = np.stack(lines, axis)
        out[b] = frame
    return torch.from_numpy(np.floor(out + 0.501))


@each_case
@each_backend
@pytest.mark.parametrize("filter", ["bilinear", "bicubic"])
def test_is_pillows_resize(filter, implementation, device, stored, boxes, size):
    """Pillow rounds to whole levels after its first pass and after its second: one level apart at most, bicubic two, where the
    first rounding is weighted by taps whose sizes add up to more than 1."""
    video = clip(stored)
    require("crop_clips", implementation, device)
    with K.use(implementation):
        got = crop_clips(video.to(device), torch.tensor(boxes, device=device), size, filter).cpu().int()
    Image = pytest.importorskip("PIL.Image")
    resample = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[filter]
    want = torch.stack([
        torch.stack([torch.from_numpy(np.array(Image.fromarray(f.numpy()).resize(size[::-1], resample, box=box))) for f in clip_])
        for clip_, box in zip(video, boxes, strict=True)
    ])  # fmt: skip
    difference = (got - want.int()).abs()
    assert difference.max() <= (1 if filter == "bilinear" else 2) and difference.float().mean() < 0.3


@pytest.mark.parametrize("implementation", ["reference", "cpp"])
def test_a_box_from_right_to_left_mirrors(implementation):
    require("crop_clips", implementation, "cpu")
    video, box = clip((30, 40)), torch.tensor([[3.0, 2.0, 35.5, 28.0]] * 2)
    with K.use(implementation):
        mirrored, upright = crop_clips(video, box[:, [2, 1, 0, 3]], (16, 24)), crop_clips(video, box, (16, 24))
    difference = (mirrored.int() - upright.flip(3).int()).abs()
    assert difference.max() <= 1 and difference.float().mean() < 1e-3


def test_several_boxes_of_one_clip():
    video = clip((30, 40))
    boxes = torch.tensor([[0.0, 0, 20, 20], [5, 5, 40, 30], [1, 2, 30, 30], [10, 0, 40, 30]])
    both = crop_clips(video, boxes, (8, 8))
    assert torch.equal(both[1::2], crop_clips(video, boxes[1::2], (8, 8)))


@each_case
@each_backend
def test_gather_patches_of_crops(stored, boxes, size, implementation, device):
    require("gather_patches", implementation, device)
    if interpreted(implementation, device) and stored[1] > 100:
        stored, boxes, size = FEW
    video, patch = clip(stored), (2, 16, 16)
    index = torch.tensor([[0, 3, 2], [2, 1, 0]])
    with K.use(implementation):
        got = K.gather_patches(video.to(device), index.to(device), patch, boxes=torch.tensor(boxes, device=device), size=size)
    want = gather.expected(by_hand(video, boxes, size), index, patch)
    assert want.norm() > 1 and (got.cpu().double() - want).norm() <= ROUNDED * want.norm()


@each_case
@each_backend
def test_masked_patch_loss_of_crops(stored, boxes, size, implementation, device):
    require("masked_patch_loss", implementation, device)
    if interpreted(implementation, device) and stored[1] > 100:
        stored, boxes, size = FEW
    video, patch = clip(stored, seed=1), (2, 16, 16)
    index, weight = torch.tensor([[0, 3, 2], [2, 1, 0]]), torch.tensor([[0.2, 0.0, 0.5], [0.3, 0.1, 0.0]])
    pred = torch.randn(2, 3, 1536, generator=torch.Generator().manual_seed(0)).to(device).requires_grad_()
    with K.use(implementation):
        got = K.masked_patch_loss(
            pred, video.to(device), index.to(device), weight.to(device), patch, torch.tensor(boxes, device=device), size
        )
        got.backward()
    want, gradient = loss.expected(pred, by_hand(video, boxes, size), index, weight, patch)
    assert abs(float(got.detach()) - float(want)) <= ROUNDED * float(want)
    assert (pred.grad.cpu().double() - gradient).norm() <= ROUNDED * gradient.norm()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"boxes": torch.zeros(1, 4)}, "boxes: got torch.float32 (1, 4)"),
        ({"boxes": torch.zeros(2, 4, dtype=torch.float64)}, "expected torch.float32 (2, 4)"),
        ({"size": None}, "size: got None, expected (H, W)"),
        ({"size": (32, 40)}, "patch: got [2, 16, 16]"),
        ({"boxes": None, "size": (16, 16)}, "size: got (16, 16) without boxes"),
    ],
    ids=lambda v: v if isinstance(v, str) else None,
)
def test_wrong_boxes_are_named(change, words):
    arguments = {"boxes": torch.tensor([[0.0, 0, 48, 32]] * 2), "size": (32, 48)} | change
    with pytest.raises(ValueError) as caught:
        K.gather_patches(clip((32, 48)), torch.zeros(2, 1, dtype=torch.int64), **arguments)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"video": torch.zeros(2, 4, 8, 8, 3)}, "video: got torch.float32 (2, 4, 8, 8, 3)"),
        ({"video": torch.zeros(0, 4, 8, 8, 3, dtype=torch.uint8)}, "not empty"),
        ({"boxes": torch.zeros(3, 4)}, "boxes: got torch.float32 (3, 4), expected torch.float32 (a multiple of 2, 4)"),
        ({"size": (0, 8)}, "size: got (0, 8), expected (H, W)"),
        ({"filter": "nearest"}, "filter: got 'nearest', expected one of bilinear, bicubic"),
    ],
    ids=lambda v: v if isinstance(v, str) else None,
)
def test_wrong_arguments_of_crops_are_named(change, words):
    arguments = {"video": clip((8, 8)), "boxes": torch.tensor([[0.0, 0, 8, 8]] * 2), "size": (8, 8)} | change
    with pytest.raises(ValueError) as caught:
        crop_clips(**arguments)
    assert words in str(caught.value)


def test_opcheck():
    require("crop_clips", "cpp", "cpu")
    torch.library.opcheck(
        torch.ops.avfmae.crop_clips.default, (clip((30, 40)), torch.tensor([[1.0, 2, 33, 27]] * 4), [16, 8], True)
    )
