"""What a model sees and hears of windows, and where its attention lies."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from avfmae.viz import literal

SHOWN = 8  # frames
GLOW = np.array([1.0, 0.45, 0.0])


@dataclass
class Look:
    """A window as the model is given it.

    Attributes:
        frames: (T, H, W, 3) uint8. spectrogram: (frames, mels), 10 ms a frame, which may go on behind the window.
            None: the model has no such modality.
        shares: of attention by patch, ``video`` (T', H', W') and ``audio`` (T', F'). span: seconds of the window.
    """

    title: str
    frames: np.ndarray | None
    spectrogram: np.ndarray | None
    shares: Mapping[str, np.ndarray]
    span: tuple[float, float]

    def rows(self) -> list[tuple[str, np.ndarray, float]]:
        """(name, (H, W, 3) picture from 0 to 1, second at which it ends) of each row."""
        rows, (start, end) = [], self.span
        if self.frames is not None:
            chosen = np.linspace(0, len(self.frames) - 1, min(SHOWN, len(self.frames))).round().astype(int)
            seen = _side_by_side(self.frames[chosen]) / 255
            light = _side_by_side(_enlarged(self.shares["video"], self.frames.shape[:3])[chosen])
            rows += [("seen", seen, end), ("attention", _lit(seen, light), end)]
        if self.spectrogram is not None:
            low, high = np.percentile(self.spectrogram[: max(1, round(100 * (end - start)))], (2, 99.5))
            # low sounds below: (mels, frames)
            heard = np.clip((self.spectrogram.T[::-1] - low) / max(high - low, 1e-6), 0, 1)
            light = _enlarged(self.shares["audio"], self.spectrogram.shape).T[::-1]
            last = start + len(self.spectrogram) / 100
            rows += [("heard", matplotlib.colormaps["magma"](heard)[..., :3], last),
                     ("attention", _lit(matplotlib.colormaps["gray"](heard)[..., :3], light), last)]  # fmt: skip
        return rows


def attention_figure(looks: Sequence[Look]) -> Figure:
    """Frames and spectrograms over their seconds; under each the same again, which glows where the attention lies."""
    tall = [len(look.rows()) for look in looks]
    figure = Figure(figsize=(11, 1.35 * sum(tall) + 0.5 * len(looks)), layout="constrained")  # pyplot would keep it
    parts = np.ravel(figure.subfigures(len(looks), 1, height_ratios=tall, squeeze=False))
    for part, look in zip(parts, looks, strict=True):
        part.suptitle(literal(look.title), fontsize=10)
        axes: Sequence[Axes] = part.subplots(len(look.rows()), 1, sharex=True, squeeze=False)[:, 0]
        for axis, (name, picture, last) in zip(axes, look.rows(), strict=True):
            axis.imshow(np.clip(picture, 0, 1), aspect="auto", extent=(look.span[0], last, 0, 1), interpolation="antialiased")
            axis.set_yticks([])
            axis.spines[:].set_visible(False)
            axis.set_ylabel(name, rotation=0, ha="right", va="center")
        axes[-1].set(xlabel="seconds", xlim=look.span)
    return figure


def _side_by_side(frames: np.ndarray) -> np.ndarray:
    return np.concatenate(list(frames), axis=1)


def _lit(picture: np.ndarray, light: np.ndarray) -> np.ndarray:
    """The picture, dark where there is no light and glowing where there is most."""
    return picture * (0.25 + 0.75 * light[..., None]) + 0.35 * light[..., None] * GLOW


def _enlarged(shares: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Shares of patches in the size of what they are patches of, from 0 to 1 as the largest."""
    large = np.kron(shares, np.ones([n // m for n, m in zip(size, shares.shape, strict=True)]))
    return large / max(float(large.max()), 1e-12)
