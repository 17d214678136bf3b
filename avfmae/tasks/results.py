"""The results of a fine-tuning: which epoch of each fold is reported, and means over folds.

Three numbers are reported and never mixed: the last epoch's, that of the epoch which was best on held-out clips, and
that of the epoch which was best on the test set itself ("legacy", as the published numbers are; not a fair estimate).
"""

import math

import numpy as np

from avfmae.tasks import task_class
from avfmae.tasks.interface import Task

KINDS = {"last": "last epoch", "best_on_held_out": "best on held-out", "best_on_test_legacy": "best on test (legacy)"}


def check_select(select: str, metrics: dict) -> None:
    """Raises ValueError where no number among a task's metrics is called so."""
    known = [name for name, value in metrics.items() if isinstance(value, float)]
    if select not in known:
        raise ValueError(f"select: got {select!r}, expected one of {', '.join(known)}")


def chosen_epochs(task: Task, history: list[dict], select: str) -> dict[str, dict]:
    """The three reports of one fold: test metrics of the last epoch, of the best on held-out, and of the best on test.

    ``history``: by evaluated epoch ``epoch``, ``test`` metrics and perhaps ``val`` metrics; ``select``: the metric that chooses.
    """
    check_select(select, history[-1]["test"])
    sign = -1 if select in task.lower_is_better else 1

    def value(metrics: dict) -> float:  # an epoch whose outputs are no numbers is the worst
        return -math.inf if math.isnan(metrics[select]) else sign * metrics[select]

    chosen = {"last": history[-1]}
    if any("val" in h for h in history):
        chosen["best_on_held_out"] = max(history, key=lambda h: value(h["val"]))
    chosen["best_on_test_legacy"] = max(history, key=lambda h: value(h["test"]))
    return {kind: {"epoch": h["epoch"], **h["test"]} for kind, h in chosen.items()}


def summarise(task: Task, folds: dict[str, dict[str, dict]]) -> dict[str, dict]:
    """By way of choosing the epoch: mean and spread of each metric over folds, and the pooled metrics of all test clips."""
    summary = {}
    for kind in next(iter(folds.values())):
        rows = [fold[kind] for fold in folds.values() if kind in fold]
        names = [n for n, v in rows[0].items() if isinstance(v, float)]
        columns = {n: [r[n] for r in rows] for n in names}
        summary[kind] = {n: {"mean": float(np.mean(v)), "std": float(np.std(v))} for n, v in columns.items()}
        if (pooled := task.pooled(rows)) is not None:
            summary[kind]["pooled"] = pooled
    return summary


def result_tables(results: dict) -> dict[str, list[dict]]:
    """Rows by title: the result table, a row a way of choosing the epoch, mean ± spread over folds; then the task's own."""
    task, rows, pooled = task_class(results["task"]), [], {}
    for kind, title in KINDS.items():
        if kind in results["summary"]:
            values, factor = results["summary"][kind], 100 if task.percent else 1
            cells = {n: f"{factor * v['mean']:.2f} ± {factor * v['std']:.2f}" for n, v in values.items() if n != "pooled"}
            epochs = ", ".join(str(fold[kind]["epoch"] + 1) for fold in results["folds"].values() if kind in fold)
            rows.append({"epoch": f"{title} ({epochs})", **cells})
            if "pooled" in values:
                pooled[title] = values["pooled"]
    unit = ", in %" if task.percent else ""
    return {f"Results, mean ± standard deviation over folds{unit}": rows, **(task.tables(pooled) if pooled else {})}
