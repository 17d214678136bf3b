"""What a model says of a video over time, as a picture: a panel a face."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from avfmae.viz import literal

MOST = 12  # panels; of more faces those with the most windows are drawn


def timeline(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str], thumbnails: Mapping[int | None, np.ndarray], title: str
) -> Figure:
    """Shares of classes as stacked areas, other numbers as lines; gaps are where nothing is predicted.

    Args:
        rows: as :class:`avfmae.inference.predictor.Prediction` has them. columns: the names of their numbers.
        thumbnails: by the face's number.
    """
    said = [row for row in rows if columns and row.get(columns[0]) is not None]
    numbers = sorted({row["face"] for row in said}, key=lambda n: -sum(row["face"] == n for row in said))[:MOST] or [None]
    numbers.sort(key=lambda n: n or 0)
    figure = Figure(figsize=(11, 0.9 + 1.5 * len(numbers)), layout="constrained")  # pyplot would keep it
    axes = figure.subplots(len(numbers), 2, width_ratios=(1, 9), squeeze=False)
    for (left, right), number in zip(axes, numbers, strict=True):
        left.axis("off")
        if (picture := thumbnails.get(number)) is not None:
            left.imshow(picture)
            left.set_title(f"face {number}", fontsize=9)
        draw(right, [row for row in said if row["face"] == number], columns)
        if rows:
            right.set_xlim(0, max(row["end"] for row in rows))
    axes[-1, 1].set_xlabel("seconds")
    handles, names = axes[0, 1].get_legend_handles_labels()
    if names:
        figure.legend(handles, names, loc="outside lower center", ncols=min(7, len(names)), frameon=False, fontsize=8)
    figure.suptitle(literal(title), fontsize=10)
    return figure


def draw(axis: Axes, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """One face's numbers at the middles of its windows; those of the first and the last one hold up to the window's end."""
    if not rows:
        axis.text(0.5, 0.5, "nothing is predicted", ha="center", va="center", transform=axis.transAxes)
        axis.set_yticks([])
        return
    starts, ends = (np.array([row[name] for row in rows]) for name in ("start", "end"))
    middles, values = (starts + ends) / 2, np.array([[row[name] for name in columns] for row in rows])
    apart = np.median(np.diff(middles)) if len(rows) > 1 else ends[0] - starts[0]
    # A row of no numbers after each gap breaks areas and lines there.
    gaps = np.flatnonzero(np.diff(middles) > 1.5 * apart) + 1
    times = np.insert(middles, gaps, (middles[gaps - 1] + middles[np.minimum(gaps, len(middles) - 1)]) / 2)
    values = np.insert(values, gaps, np.nan, axis=0)
    times, values = np.concatenate([starts[:1], times, ends[-1:]]), np.concatenate([values[:1], values, values[-1:]])
    colours = matplotlib.colormaps["tab10" if len(columns) <= 10 else "tab20"].colors  # pyright: ignore[reportAttributeAccessIssue]
    if (values[~np.isnan(values)] >= 0).all() and np.allclose(np.nansum(values, axis=1)[~np.isnan(values[:, 0])], 1, atol=0.01):
        tops = np.cumsum(np.column_stack([np.zeros(len(values)), values]), axis=1)
        for k, name in enumerate(columns):
            axis.fill_between(
                times, tops[:, k], tops[:, k + 1], label=literal(name), color=colours[k % len(colours)], linewidth=0
            )
        axis.set_ylim(0, 1)
    else:
        for k, name in enumerate(columns):
            axis.plot(times, values[:, k], marker=".", label=literal(name), color=colours[k % len(colours)])
