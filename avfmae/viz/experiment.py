"""The results of an experiment: one page, tables for spreadsheets and LaTeX, and the predictions."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import pyarrow as pa
import pyarrow.parquet
from matplotlib.figure import Figure

from avfmae.datasets import find_dataset
from avfmae.datasets.published import published
from avfmae.files import atomic_write, write_json, write_table
from avfmae.metrics import of_each_class
from avfmae.tasks import task_class
from avfmae.tasks.pooling import LEVEL
from avfmae.tasks.results import KINDS
from avfmae.viz import literal
from avfmae.viz.pages import Page, add_quarantine
from avfmae.viz.plots import BLUE, GREY, ORANGE, plot_confusion

SUBJECT_FOLDS = 10  # with more folds, each is a subject or so, and pooled metrics are the protocol's


def write_results(out: Path, results: dict, rows: Sequence[dict], folders: Sequence[Path]) -> None:
    """Writes results.json, results.csv, results.tex, predictions.parquet and report.html into ``out``.

    Args:
        results: as :func:`avfmae.stages.experiment.experiment` makes them. rows: the predictions. folders: of the fine-tunings.
    """
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "results.json", results)
    write_table(out / "results.csv", ("variant", "kind", "seed", "fold", "metric", "value", "low", "high"), long_rows(results))
    with atomic_write(out / "predictions.parquet") as path:
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
    with atomic_write(out / "results.tex") as path:
        path.write_text(latex(compared(results)), encoding="utf-8")
    page(out, results, folders).write()


def long_rows(results: dict) -> Iterator[dict]:
    """A row a number: of each seed's folds, their mean, and all test clips pooled, with its interval."""
    for variant, one in results["variants"].items():
        for kind, summary in one["summary"].items():
            about = {"variant": variant, "kind": kind}
            for seed, folds in summary["folds"].items():
                for fold, metrics in folds.items():
                    for metric, value in metrics.items():
                        yield {**about, "seed": seed, "fold": fold, "metric": metric, "value": value}
            for metric, value in summary["mean"].items():
                yield {**about, "fold": "mean", "metric": metric, "value": value}
            for metric, value in summary["pooled"].items():
                low, high = summary["interval"].get(metric, (None, None))
                yield {**about, "fold": "pooled", "metric": metric, "value": value, "low": low, "high": high}


def factor(one: dict) -> float:
    """Metrics are shown in percent, as papers print them, but where that makes no sense."""
    return 100 if task_class(one["task"]).percent or one["task"] == "regression" else 1


def reported(summary: dict) -> dict[str, float]:
    """The protocol's numbers: means over folds, or, where a fold is a subject, of the pooled predictions."""
    folds = len(next(iter(summary["folds"].values())))
    return summary["pooled"] if folds > SUBJECT_FOLDS else summary["mean"]


def headline(results: dict) -> list[str]:
    """The metrics that the data set is reported in; without a known data set, all that are no single dimension's."""
    one = next(iter(results["variants"].values()))
    there = list(next(iter(one["summary"].values()))["pooled"])
    if results["dataset"] is None:
        return [metric for metric in there if "_" not in metric]
    dataset = find_dataset(results["dataset"])
    printed = {m: None for row in published(dataset.name) for m in row.metrics}
    return [metric for metric in dict.fromkeys((*printed, *dataset.metrics)) if metric in there]


def compared(results: dict) -> list[dict[str, str]]:
    """A row a published method and a row each of our variants and ways of choosing the epoch."""
    metrics, rows = headline(results), []
    known = published(find_dataset(results["dataset"]).name) if results["dataset"] else []
    for row in known:
        values = {m: f"{row.metrics[m]:.2f}" if m in row.metrics else "–" for m in metrics}
        size = "–" if row.parameters is None else str(row.parameters)
        rows.append({"method": row.method, "modalities": row.modalities, "M parameters": size, **values, "source": row.source})
    for variant, one in results["variants"].items():
        modalities = "+".join(name[0].upper() for name in sorted(one["modalities"]))
        for kind, summary in one["summary"].items():
            values, scale = reported(summary), factor(one)
            cells = {m: f"{scale * values[m]:.2f}" for m in metrics}
            name = f"{variant or 'ours'}, {KINDS[kind]}"
            rows.append({"method": name, "modalities": modalities, "M parameters": "", **cells, "source": "this experiment"})
    return rows


def latex(rows: Sequence[dict[str, str]]) -> str:
    """A table for the booktabs package."""

    def line(cells: Sequence[str]) -> str:
        escaped = (
            c.replace("\\", r"\textbackslash{}").replace("_", r"\_").replace("%", r"\%").replace("&", r"\&") for c in cells
        )
        return " & ".join(escaped) + r" \\"

    columns = [name for name in rows[0] if name != "source"]
    first = next((i for i, row in enumerate(rows) if row["source"] == "this experiment"), 0)
    body = [line([row[name] for name in columns]) for row in rows]
    if first:
        body.insert(first, r"\midrule")
    columns_of = "ll" + "r" * (len(columns) - 2)
    parts = [
        rf"\begin{{tabular}}{{{columns_of}}}",
        r"\toprule",
        line(columns),
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(parts) + "\n"


def page(out: Path, results: dict, folders: Sequence[Path]) -> Page:
    """The page; nothing on it depends on where and when it was made."""
    first = next(iter(results["variants"].values()))
    known = find_dataset(results["dataset"]) if results["dataset"] else None
    folds = len(next(iter(next(iter(first["summary"].values()))["folds"].values())))
    shape = f"{folds} folds, {len(results['seeds'])} seeds, {first['clips']} test clips"
    made = Page(out, known.title if known else "Experiment", f"{f'{known.protocol}; ' if known else ''}{shape}.")
    metrics = headline(results)
    rows = compared(results)
    where = "means over folds" if folds <= SUBJECT_FOLDS else "pooled predictions, since a fold is a subject"
    if known is not None:
        made.add("Beside published numbers", f"Ours are {where}.", rows, published=bars(results, rows, metrics[0]))
    elif len(results["variants"]) > 1:
        ours = [{k: v for k, v in row.items() if k not in ("M parameters", "source")} for row in rows]
        made.add("Variants", f"These are {where}.", ours, variants=bars(results, rows, metrics[0]))
    for variant, one in results["variants"].items():
        scale, title = factor(one), f"Results of {variant}" if variant else "Results"
        unit = f", in % ({', '.join(metrics)})" if scale == 100 else ""
        text = (
            f"Mean ± standard deviation over folds and seeds, and all test clips pooled with {LEVEL} % intervals (bootstrap over "
            f"subjects){unit}. The epoch is the last one, or the best on held-out training subjects, or the best on the test "
            "set itself, as published numbers often are, which is no fair estimate."
        )
        made.add(title, text, result_rows(one, scale))
    for number, (variant, one) in enumerate(results["variants"].items()):
        of, last = f" of {variant}" if variant else "", one["summary"]["last"]
        made.add(f"Folds{of}", rows=fold_rows(one, metrics))
        if len(last["datasets"]) > 1:
            cells = [{"data set": name, **_cells(values, metrics, factor(one))} for name, values in last["datasets"].items()]
            made.add(f"Data sets{of}, last epoch, pooled", rows=cells)
        if "confusion" in last:
            made.add(f"Classes{of}, last epoch, in %", rows=class_rows(one))
            pictures = {f"confusion_{number}_{kind}": plot_confusion(summary["confusion"], one["classes"], KINDS[kind])
                        for kind, summary in one["summary"].items()}  # fmt: skip
            made.add(f"Confusion{of}", "All test clips of all folds and seeds.", (), **pictures)
    add_quarantine(made, folders)
    return made


def _cells(values: dict[str, float], metrics: Sequence[str], scale: float) -> dict[str, str]:
    return {m: f"{scale * values[m]:.2f}" for m in metrics}


def result_rows(one: dict, scale: float) -> list[dict[str, str]]:
    """A row a metric; two columns a way of choosing the epoch."""
    rows = []
    for metric in next(iter(one["summary"].values()))["pooled"]:
        row = {"metric": metric}
        for kind, summary in one["summary"].items():
            low, high = (scale * v for v in summary["interval"].get(metric, (float("nan"),) * 2))
            row[f"{KINDS[kind]}, folds"] = f"{scale * summary['mean'][metric]:.2f} ± {scale * summary['std'][metric]:.2f}"
            between = f" [{low:.2f}, {high:.2f}]" if summary["interval"] else ""
            row[f"{KINDS[kind]}, pooled"] = f"{scale * summary['pooled'][metric]:.2f}{between}"
        rows.append(row)
    return rows


def fold_rows(one: dict, metrics: Sequence[str]) -> list[dict[str, str]]:
    """A row a fold of a seed."""
    kinds, scale = one["summary"], factor(one)
    rows = []
    for seed, folds in kinds["last"]["folds"].items():
        for fold in folds:
            values = {
                f"{m}, {KINDS[kind]}": f"{scale * s['folds'][seed][fold][m]:.2f}" for kind, s in kinds.items() for m in metrics
            }
            rows.append({"seed": str(seed), "fold": fold, **values})
    return rows


def class_rows(one: dict) -> list[dict[str, str]]:
    """A row a class: its clips, and recall, precision and F1 of the pooled predictions."""
    each = of_each_class(one["summary"]["last"]["confusion"])
    return [
        {"class": name, "clips": str(row["clips"])} | {m: f"{100 * row[m]:.1f}" for m in ("recall", "precision", "F1")}
        for name, row in zip(one["classes"], each, strict=True)
    ]


def bars(results: dict, rows: Sequence[dict[str, str]], metric: str) -> Figure | None:
    """The first metric of all methods; ours in colour, with the interval of the pooled metric."""
    rows = [row for row in rows if row[metric] != "–"]
    intervals = [
        (factor(one) * low, factor(one) * high)
        for one in results["variants"].values() for summary in one["summary"].values()
        for low, high in [summary["interval"].get(metric, (float("nan"),) * 2)]
    ]  # fmt: skip
    figure, axis = plt.subplots(figsize=(7.2, 0.6 + 0.24 * len(rows)), layout="constrained")
    ours = 0
    for y, row in enumerate(rows):
        mine, legacy = row["source"] == "this experiment", "legacy" in row["method"]
        value = float(row[metric])
        axis.barh(y, value, color=(ORANGE if legacy else BLUE) if mine else GREY, height=0.7)
        if mine:
            axis.plot(intervals[ours], (y, y), color="black", linewidth=1.2)
            ours += 1
        inside = value > 15  # at the beginning of the bar, as the interval is at its end
        axis.text(
            0 if inside else max(value, 0), y, f" {value:.1f}", va="center", fontsize=7.5, color="white" if inside else "black"
        )
    axis.set(
        yticks=range(len(rows)), yticklabels=[literal(f"{row['method']} ({row['modalities']})") for row in rows], xlabel=metric
    )
    axis.invert_yaxis()
    return figure
