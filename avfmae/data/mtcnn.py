"""MTCNN (Zhang et al., 2016): a cascade of three small networks that finds faces and five landmarks, for a batch of frames.

The weights are those that the package ``mtcnn`` carries, which are read without its TensorFlow. Arithmetic follows that package,
its way of leaving out overlapping boxes included, so that both find the same boxes.

Boxes inside this file are (x1, y1, x2, y2) in pixels; every box goes with the number of its frame.
"""

from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from avfmae.extras import need

CELL, STRIDE = 12, 2  # of the first network: the side of what it looks at, and the step from one place to the next
SHRINK = 0.709  # from one picture of the pyramid to the next
THRESHOLDS = (0.6, 0.7, 0.8)  # of each network's face probability, as published for the last two
AT_ONCE = 2048  # boxes that a network is given in one pass


def is_installed() -> bool:
    """Whether the package that carries the weights is there, and what its files are read with."""
    return all(find_spec(name) for name in ("mtcnn", "joblib", "lz4"))


def stored_weights(name: str) -> list[np.ndarray]:
    """The arrays of ``pnet``, ``rnet`` or ``onet``, in the order of its layers.

    Raises:
        RuntimeError: the package, or what its files are read with, is not installed.
    """
    joblib = need("joblib", "faces", "detector 'mtcnn'")
    need("lz4", "faces", "detector 'mtcnn'")
    spec = find_spec("mtcnn")  # which is not imported: that would import TensorFlow
    if spec is None or spec.origin is None:
        raise RuntimeError("detector 'mtcnn' needs the weights of the package mtcnn: pip install 'avfmae[faces]'")
    return joblib.load(Path(spec.origin).parent / "assets" / "weights" / f"{name}.lz4")


class Network(nn.Module):
    """One network of the cascade.

    Args:
        convolutions: (channels, kernel side, pooling side) of each; a pooling side of 0: none.
        kept: the places of poolings that leave out what does not fill them.
        inputs, hidden: of the linear layer; 0: all layers are convolutions. heads: outputs of each.
    """

    def __init__(
        self, convolutions: Sequence[tuple[int, int, int]], kept: Sequence[int], inputs: int, hidden: int, heads: Sequence[int]
    ):
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for place, (width, side, pool) in enumerate(convolutions):
            layers += [nn.Conv2d(channels, width, side), nn.PReLU(width)]
            layers += [nn.MaxPool2d(pool, 2, ceil_mode=place not in kept)] if pool else []
            channels = width
        self.body = nn.Sequential(*layers)
        self.hidden = nn.Sequential(nn.Linear(inputs, hidden), nn.PReLU(hidden)) if hidden else None
        self.heads = nn.ModuleList(nn.Linear(hidden, n) if hidden else nn.Conv2d(channels, n, 1) for n in heads)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, 3, H, W) in -1..1 -> each head's (B, outputs), or (B, outputs, H', W'); the last one's are probabilities."""
        x = self.body(x)
        if self.hidden is not None:
            x = self.hidden(x.permute(0, 3, 2, 1).flatten(1))  # by columns, as it was trained
        *others, scores = (head(x) for head in self.heads)
        return [*others, scores.softmax(1)]

    def load(self, arrays: Sequence[np.ndarray]) -> "Network":
        """Takes Keras's arrays: kernels (h, w, in, out), matrices (in, out)."""
        remaining = iter(arrays)
        for module in self.modules():
            for name in ("weight", "bias"):
                if isinstance(module, nn.Conv2d | nn.Linear | nn.PReLU) and hasattr(module, name):
                    value = torch.from_numpy(next(remaining))
                    value = value.permute(3, 2, 0, 1) if value.ndim == 4 else value.T if value.ndim == 2 else value.flatten()
                    setattr(module, name, nn.Parameter(value.contiguous(), requires_grad=False))
        return self.eval()


class MTCNN:
    """Finds the faces of several frames at once.

    Args:
        smallest: of a face, in shares of a frame's shorter side; none is looked for below 20 pixels.
        device: where the networks run.
    """

    def __init__(self, smallest: float = 0.08, device: torch.device | str = "cpu"):
        self.smallest, self.device = smallest, torch.device(device)
        self.proposal = Network([(10, 3, 2), (16, 3, 0), (32, 3, 0)], (), 0, 0, (4, 2))
        self.refinement = Network([(28, 3, 3), (48, 3, 3), (64, 2, 0)], (1,), 576, 128, (4, 2))
        self.output = Network([(32, 3, 3), (64, 3, 3), (64, 3, 2), (128, 2, 0)], (1,), 1152, 256, (4, 10, 2))
        for name, network in (("pnet", self.proposal), ("rnet", self.refinement), ("onet", self.output)):
            network.load(stored_weights(name)).to(self.device)

    def __call__(self, frames: Sequence[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """The faces of (H, W, 3) uint8 RGB frames of one size, the most probable one first.

        Returns:
            For each frame the boxes (n, 4) as x, y, width, height, the scores (n,), and the landmarks (n, 5, 2): left eye, right
            eye, nose, left and right corner of the mouth, as they lie in the picture.
        """
        with torch.inference_mode(), torch.autocast(self.device.type, enabled=False):  # whatever the caller's model computes in
            return self._find(torch.from_numpy(np.stack(frames)).to(self.device).permute(0, 3, 1, 2))  # pixel by pixel

    def _find(self, pictures: Tensor) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        pictures = (pictures.float() - 127.5) / 128
        frame, box = self._propose(pictures)
        frame, box = self._refine(pictures, frame, box)
        offsets, places, found = self._look(self.output, pictures, frame, box, 48)
        sides = box[:, 2:] - box[:, :2] + 1
        marks = places.unflatten(1, (2, 5)).transpose(1, 2) * sides[:, None] + box[:, None, :2] - 1
        box, score = box + offsets * sides.repeat(1, 2), found[:, 1]
        good = score > THRESHOLDS[2]
        frame, box, score, marks = self._distinct(0.7, frame[good], box[good], score[good], marks[good], smaller=True)
        limit = torch.tensor([pictures.shape[3] - 1, pictures.shape[2] - 1] * 2, device=self.device)
        box = torch.minimum(box.clamp(min=0), limit)
        box[:, 2:] -= box[:, :2]
        parts = [t.cpu().numpy() for t in (frame, box, score, marks)]
        of = [parts[0] == number for number in range(len(pictures))]
        return [(parts[1][mine], parts[2][mine], parts[3][mine]) for mine in of]

    def _propose(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """(n,) frame numbers and (n, 4) square boxes that may be faces: the first network at every place of every scale."""
        height, width = pictures.shape[2:]
        scale = CELL / max(20.0, self.smallest * min(height, width))
        parts = []
        while min(height, width) * scale >= CELL:
            small = _shrink(pictures, int(height * scale), int(width * scale))
            offsets, found = self.proposal(small)
            frame, y, x = torch.where(found[:, 1] > THRESHOLDS[0])
            corner = torch.stack([x, y], 1) * STRIDE + 1
            box = torch.cat([corner, corner + (CELL - 1)], 1) + offsets[frame, :, y, x] * (CELL - 1)
            part = self._distinct(0.5, frame, box / scale, found[frame, 1, y, x])
            parts.append(part)
            scale *= SHRINK
        if not parts:  # a frame of less than 20 pixels
            return torch.zeros(0, dtype=torch.long, device=self.device), torch.zeros(0, 4, device=self.device)
        frame, box, _ = self._distinct(0.7, *(torch.cat(p) for p in zip(*parts, strict=True)))
        return frame, _square(box)

    def _refine(self, pictures: Tensor, frame: Tensor, box: Tensor) -> tuple[Tensor, Tensor]:
        """Those of the boxes that the second network takes for faces, moved."""
        offsets, found = self._look(self.refinement, pictures, frame, box, 24)
        box, score = box + offsets * (box[:, 2:] - box[:, :2] + 1).repeat(1, 2), found[:, 1]
        good = score > THRESHOLDS[1]
        frame, box, _ = self._distinct(0.7, frame[good], box[good], score[good])
        return frame, _square(box)

    def _look(self, network: Network, pictures: Tensor, frame: Tensor, box: Tensor, size: int) -> list[Tensor]:
        """A network's outputs for what the boxes show."""
        passes = [
            network(_cut(pictures, frame[k : k + AT_ONCE], box[k : k + AT_ONCE], size))
            for k in range(0, max(1, len(box)), AT_ONCE)
        ]
        return [torch.cat(outputs) for outputs in zip(*passes, strict=True)]

    def _distinct(
        self, most: float, frame: Tensor, box: Tensor, score: Tensor, *others: Tensor, smaller: bool = False
    ) -> tuple[Tensor, ...]:
        """What is left, by descending score, without the boxes that overlap a better one of their frame by more than ``most``.

        The overlap is a share of the union, or of the ``smaller`` box. A box that is left out leaves out others all the same.
        """
        order = score.argsort(descending=True)
        frame, box, score = frame[order], box[order], score[order]
        rest = [t[order] for t in others]
        x1, y1, x2, y2 = box.T
        width = torch.minimum(x2[:, None], x2) - torch.maximum(x1[:, None], x1)
        shared = width.clamp_(min=0) * (torch.minimum(y2[:, None], y2) - torch.maximum(y1[:, None], y1)).clamp_(min=0)
        area = (x2 - x1) * (y2 - y1)
        whole = torch.minimum(area[:, None], area) if smaller else area[:, None] + area - shared
        over = (shared / whole > most) & (frame[:, None] == frame)
        keep = ~over.triu(1).any(0)
        return tuple(t[keep] for t in (frame, box, score, *rest))


def _square(box: Tensor) -> Tensor:
    """The squares of the longer sides around the boxes' centres."""
    centre, side = (box[:, :2] + box[:, 2:]) / 2, (box[:, 2:] - box[:, :2]).amax(1, keepdim=True)
    return torch.cat([centre - side / 2, centre + side / 2], 1)


def _shrink(pictures: Tensor, height: int, width: int) -> Tensor:
    """(B, C, H, W) at a smaller size, each pixel the mean of the area that it covers."""
    if pictures.device.type == "cpu":  # where OpenCV is faster than products with matrices that are mostly zero
        lines = pictures.permute(0, 2, 3, 1).numpy()
        small = np.stack([cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA) for picture in lines])
        return torch.from_numpy(small).permute(0, 3, 1, 2)
    rows = _area_weights(pictures.shape[2], height, pictures.device)
    columns = _area_weights(pictures.shape[3], width, pictures.device)
    return torch.matmul(rows, pictures) @ columns.T


@lru_cache(maxsize=64)
def _area_weights(old: int, new: int, device: torch.device) -> Tensor:
    """(new, old): by which each pixel of a line enters each one of the shorter line."""
    edges = torch.arange(new + 1, dtype=torch.float64) * (old / new)
    low, high = edges[:-1, None], edges[1:, None]
    pixel = torch.arange(old, dtype=torch.float64)
    cover = (torch.minimum(high, pixel + 1) - torch.maximum(low, pixel)).clamp(min=0)
    return (cover * (new / old)).float().to(device)


def _cut(pictures: Tensor, frame: Tensor, box: Tensor, size: int) -> Tensor:
    """What (n, 4) boxes show, (n, 3, size, size), bilinear; zero outside of the frame."""
    height, width = pictures.shape[2:]
    steps = torch.linspace(0, 1, size, device=box.device)

    def places(low: Tensor, high: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of each line: the pixel before, the one after, the latter's share, and whether it lies inside: (n, size)."""
        at = (low[:, None] + (high - low)[:, None] * steps) * ((length - 1) / length)
        before = at.floor().clamp(0, length - 1)
        return before.long(), (before + 1).clamp(max=length - 1).long(), at - before, (at >= 0) & (at <= length - 1)

    top, bottom, down, in_y = places(box[:, 1], box[:, 3], height)
    left, right, across, in_x = places(box[:, 0], box[:, 2], width)
    number = frame[:, None, None]

    def line(y: Tensor) -> Tensor:
        a, b = (pictures[number, :, y[:, :, None], x[:, None]] for x in (left, right))  # (n, size, size, 3)
        return a + (b - a) * across[:, None, :, None]

    upper, lower = line(top), line(bottom)
    shown = (upper + (lower - upper) * down[:, :, None, None]) * (in_y[:, :, None] & in_x[:, None])[..., None]
    return shown.permute(0, 3, 1, 2)
