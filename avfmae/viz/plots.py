"""The figures of a report: loss curves, confusion matrices, comparisons, clips as the model sees them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from avfmae.config import ModalityConfig, ModelConfig
from avfmae.masking import DualMask, ModalityMask
from avfmae.training.runlog import read_log
from avfmae.viz import literal

if TYPE_CHECKING:
    from avfmae.viz.inspection import Inspection

BLUE, ORANGE, GREY = "#2b6cb0", "#dd6b20", "#a0aec0"
plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 110})


def loss_curves(logs: dict[str, Path], names: Sequence[str] = ("loss",)) -> Figure | None:
    """Logged values over steps, one panel a run and a line a value."""
    runs = {title: [line for line in read_log(path) if "loss" in line] for title, path in logs.items()}
    runs = {title: lines for title, lines in runs.items() if lines}
    if not runs:
        return None
    figure, axes = plt.subplots(1, len(runs), figsize=(4.2 * len(runs), 2.8), squeeze=False, layout="constrained")
    for axis, (title, lines) in zip(axes[0], runs.items(), strict=True):
        for name in names:
            if name in lines[0]:
                steps, values = [line["step"] for line in lines], np.array([line[name] for line in lines])
                window = max(1, len(values) // 40)
                smooth = np.convolve(values, np.ones(window) / window, mode="valid")
                marker = "o" if len(values) <= 40 else ""  # a line through one step alone is not seen
                (drawn,) = axis.plot(steps[window - 1 :], smooth, marker=marker, markersize=3, label=name.removeprefix("loss_"))
                if window > 1:
                    axis.plot(steps, values, color=drawn.get_color(), alpha=0.2, linewidth=0.8)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set(title=literal(title), xlabel="step", ylabel="loss")
        axis.legend(frameon=False)
    return figure


def plot_confusion(matrix: Sequence[Sequence[int]], classes: Sequence[str], title: str) -> Figure:
    """Shares of each true class, with counts written in."""
    counts = np.asarray(matrix)
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    side = 1.6 + 0.55 * len(classes)
    figure, axis = plt.subplots(figsize=(side, side * 0.9), layout="constrained")
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    bare(axis, xlabel="predicted", ylabel="true", title=literal(title))
    names = [literal(name) for name in classes]
    axis.set_xticks(range(len(classes)), names, rotation=45, ha="right")
    axis.set_yticks(range(len(classes)), names)
    for i, j in np.ndindex(counts.shape):
        axis.text(j, i, str(counts[i, j]), ha="center", va="center", color="white" if shares[i, j] > 0.5 else "black")
    return figure


def bare(axis: Axes, **settings: object) -> None:
    """Sets labels and ticks, and takes the frame off."""
    axis.set(**settings)
    axis.spines[:].set_visible(False)


def comparison(runs: dict[str, list[float]], chance: float, label: str) -> Figure:
    """One bar a way of training with its mean, a dot a seed."""
    figure, axis = plt.subplots(figsize=(1.2 + 1.35 * len(runs), 3.0), layout="constrained")
    for i, values in enumerate(runs.values()):
        shade = 1 if i in (0, len(runs) - 1) else 0.55
        axis.bar(i, 100 * np.mean(values), color=GREY if i == 0 else BLUE, alpha=shade, width=0.6)
        axis.scatter(i + np.linspace(-0.15, 0.15, len(values)), 100 * np.array(values), color="black", s=14, zorder=3)
        axis.text(i, 3, f"{100 * np.mean(values):.0f}", ha="center", color="white", fontweight="bold")
    axis.axhline(100 * chance, color=ORANGE, linestyle="--", linewidth=1)
    axis.text(len(runs) - 0.45, 100 * chance, "chance", color=ORANGE, va="center")
    ticks = [name.replace("after ", "after\n").replace(" and ", "\nand ").replace(" alone", "\nalone") for name in runs]
    axis.set(xticks=range(len(runs)), xticklabels=ticks, ylabel=label, ylim=(0, 100))
    return figure


def plot_clip(clip: "Inspection", cfg: ModelConfig, masks: DualMask) -> Figure:
    """One clip as the model sees it: every frame over its moment of the spectrogram; below both what masks leave of them.

    Hidden tokens are grey; of those, the ones that no decoder is asked for are darker.
    """
    frames, mels = cfg.audio.size
    assert masks.video is not None and masks.audio is not None
    shade, heard = _shades(masks.video, cfg.video), _shades(masks.audio, cfg.audio)
    masked = np.where(shade[..., None] > 0, np.choose(shade, (0, 150, 95))[..., None], clip.frames).astype(np.uint8)
    figure = plt.figure(figsize=(15, 3.9), layout="constrained")  # frames of 25 a second are square
    left, right = list(figure.subfigures(1, 2, width_ratios=(1, 4.6)))  # pyright: ignore[reportArgumentType]  an array
    axis = left.subplots()
    axis.imshow(clip.original)
    bare(axis, xticks=[], yticks=[], title="no face is found" if clip.face is None else "source, face")
    if clip.face is not None:
        x, y, w, h = clip.face
        axis.add_patch(plt.Rectangle((x, y), w, h, fill=False, color=ORANGE, linewidth=2))
    begin, end = clip.span
    rows = right.subplots(4, 1, sharex=True, height_ratios=(1, 1, 1.1, 1.1))
    # A frame is drawn over the time until the next one, so that what is under it is what is heard meanwhile.
    for row, pictures in zip(rows, (clip.frames, masked), strict=False):
        row.imshow(np.concatenate(list(pictures), axis=1), aspect="auto", extent=(begin, end, 0, 1), interpolation="antialiased")
    valid = np.isfinite(clip.spectrogram)
    low, high = np.percentile(clip.spectrogram[valid], (2, 99.5)) if valid.any() else (0, 1)
    last = begin + frames / 100  # ten milliseconds a column
    for row in rows[2:]:
        row.imshow(clip.spectrogram.T, origin="lower", aspect="auto", extent=(begin, last, 0, mels), vmin=low, vmax=high,
                   cmap=matplotlib.colormaps["magma"].with_extremes(bad="#e2e8f0"))  # fmt: skip
    cover = np.array([(0, 0, 0, 0), (0.59, 0.59, 0.59, 1), (0.37, 0.37, 0.37, 1)])[heard.T]
    rows[3].imshow(cover, origin="lower", aspect="auto", extent=(begin, last, 0, mels))
    for row, name in zip(rows, ("seen", "left by\nthe masks", "heard", "left by\nthe masks"), strict=True):
        bare(row, yticks=[])
        row.set_ylabel(name, rotation=0, ha="right", va="center")
    rows[-1].set(xlim=(begin, max(end, last)), xlabel="seconds")
    if not valid.any():
        rows[2].text((begin + last) / 2, mels / 2, "no sound", ha="center", va="center")
    return figure


def _shades(mask: ModalityMask, modality: ModalityConfig) -> np.ndarray:
    """Of the first clip, in the size of its pixels: 0 visible, 1 hidden and decoded, 2 hidden and not asked for."""
    shade = np.full(modality.tokens, 2)
    shade[mask.decoded[0].cpu().numpy()] = 1
    shade[mask.visible[0].cpu().numpy()] = 0
    return np.kron(shade.reshape(modality.grid), np.ones(modality.patch, int))
