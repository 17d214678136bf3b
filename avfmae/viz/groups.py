"""Metrics of groups of clips: printed, written as JSON and CSV, and drawn."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from avfmae.console import console
from avfmae.files import printable, write_json, write_table
from avfmae.tasks.pooling import LEVEL
from avfmae.viz import literal
from avfmae.viz.plots import BLUE, GREY
from avfmae.viz.tables import print_table

PRINTED = 4  # metrics
NONE = "(none)"  # clips without a value in the column


def print_groups(report: dict[str, Any], select: str) -> None:
    """A table: a row a group, and the largest gaps.

    Args:
        report: ``split``, ``column``, ``groups`` and ``gaps`` as :mod:`avfmae.tasks.groups` gives them. select: the metric whose
            interval is shown.
    """
    groups, gaps = report["groups"], report["gaps"]
    metrics = _first(groups, select)
    counts, rows = {"clips": "clips", "people": "people", "cannot be read": "unread", "no face": "no_face"}, []
    for group in groups:
        cells = {m: f"{group['metrics'][m]:.4f}" for m in metrics}
        low, high = group["interval"][select]
        if low is not None:
            cells[select] += f" [{low:.2f}, {high:.2f}]"
        rows.append({report["column"]: group["group"] or NONE} | {name: group[key] for name, key in counts.items()} | cells)
    if gaps:
        gap = {m: f"{gaps[m]['gap']:.4f}" for m in metrics}
        rows.append({report["column"]: "largest gap"} | dict.fromkeys(counts, "") | gap)
    print_table(rows, title(report), console)
    for group in groups:
        if lacking := group.get("without_clips"):
            told = (
                f"{report['column']} {group['group'] or NONE} has no clips of {', '.join(lacking)}: other groups' UAR is of more"
            )
            console.print(printable(told), highlight=False)


def write_groups(reports: Sequence[dict[str, Any]], select: str, folder: Path) -> None:
    """``groups.json``, ``groups.csv`` with a row a number, and a picture a column."""
    write_json(folder / "groups.json", reports)
    rows = [
        {"split": report["split"], "column": report["column"], "group": group["group"], "clips": group["clips"], "metric": metric}
        | {"value": value} | dict(zip(("low", "high"), group["interval"][metric], strict=True))
        for report in reports for group in report["groups"] for metric, value in group["metrics"].items()
    ]  # fmt: skip
    write_table(folder / "groups.csv", ("split", "column", "group", "clips", "metric", "value", "low", "high"), rows)
    for report in reports:
        name = "-".join(filter(None, ("groups", report["column"], report["split"]))).replace("/", "_")
        plot_groups(report, select).savefig(folder / f"{printable(name)}.png")


def plot_groups(report: dict[str, Any], select: str) -> Figure:
    """A bar a group, with its interval and the number of its clips."""
    groups = report["groups"]
    figure = Figure(figsize=(6.4, 0.9 + 0.3 * len(groups)), layout="constrained")  # pyplot would keep it
    axis = figure.subplots()
    for y, group in enumerate(groups):
        axis.barh(y, group["metrics"][select], color=GREY if group["group"] is None else BLUE, height=0.65)
        if None not in group["interval"][select]:
            axis.plot(group["interval"][select], (y, y), color="black", linewidth=1.2)
    names = [f"{literal(group['group'] or NONE)} ({group['clips']} clips)" for group in groups]
    axis.set(yticks=range(len(groups)), yticklabels=names, xlabel=f"{select} [{LEVEL} % interval]", title=literal(title(report)))
    axis.invert_yaxis()
    return figure


def title(report: dict[str, Any]) -> str:
    return f"by {report['column']}" + (f", {report['split']}" if report["split"] else "")


def _first(groups: Sequence[dict[str, Any]], select: str) -> list[str]:
    """The metrics that are printed, of which ``select`` is one."""
    names = list(groups[0]["metrics"])
    return list(dict.fromkeys([*names[: PRINTED - (select not in names[:PRINTED])], select]))
