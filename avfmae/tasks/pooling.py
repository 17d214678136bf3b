"""Metrics of an experiment from its predictions: by fold, pooled over folds, and how sure they are.

Rows are those of :mod:`avfmae.tasks.predictions`, all of one way of choosing the epoch, with a ``seed``.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from avfmae.data.clip import Clip
from avfmae.tasks.interface import Task
from avfmae.tasks.predictions import clips_of

LEVEL = 95  # percent, of confidence intervals


@dataclass(frozen=True)
class Pooled:
    """One seed's predictions of all folds' test clips."""

    clips: list[Clip]
    outputs: np.ndarray  # (n, O)
    folds: list[str]

    @classmethod
    def of(cls, rows: Sequence[dict]) -> "Pooled":
        return cls(clips_of(rows), np.array([row["outputs"] for row in rows]), [row["fold"] for row in rows])

    def subset(self, numbers: Sequence[int] | np.ndarray) -> tuple[list[Clip], np.ndarray]:
        return [self.clips[i] for i in numbers], self.outputs[numbers]

    def groups(self, names: Sequence[str | None]) -> Iterator[tuple[str, np.ndarray]]:
        """(name, rows) by a name of each row."""
        numbers: dict[str, list[int]] = {}
        for i, name in enumerate(names):
            numbers.setdefault(name or "", []).append(i)
        yield from ((name, np.array(found)) for name, found in numbers.items())


def numbers_of(metrics: dict) -> dict[str, float]:
    """The metrics that are numbers."""
    return {name: value for name, value in metrics.items() if isinstance(value, float)}


def by_fold(task: Task, predictions: Pooled) -> dict[str, dict[str, float]]:
    """Metrics of each fold's test clips."""
    groups = predictions.groups(predictions.folds)
    return {fold: numbers_of(task.metrics(*predictions.subset(rows))) for fold, rows in groups}


def by_dataset(task: Task, predictions: Pooled) -> dict[str, dict[str, float]]:
    """Metrics of each data set's clips among the pooled ones, as composite protocols report them."""
    groups = predictions.groups([clip.dataset for clip in predictions.clips])
    return {name: numbers_of(task.metrics(*predictions.subset(rows))) for name, rows in groups}


def interval(task: Task, seeds: Sequence[Pooled], resamples: int) -> dict[str, tuple[float, float]]:
    """Percentile bootstrap intervals of the pooled metrics, each averaged over seeds.

    Subjects are drawn with replacement, with all of their clips, since clips of one person are alike; a clip without a subject
    stands for its recording. All seeds get the same draws.
    """
    rng = np.random.default_rng(0)
    units = [dict(one.groups([f"{c.dataset} {c.subject}" if c.subject else c.path for c in one.clips])) for one in seeds]
    names = sorted(set().union(*units))
    drawn: dict[str, list[float]] = {}
    for _ in range(resamples):
        chosen = [names[i] for i in rng.integers(0, len(names), len(names))]
        found = []
        for one, rows in zip(seeds, units, strict=True):
            found.append(numbers_of(task.metrics(*one.subset(np.concatenate([rows[name] for name in chosen if name in rows])))))
        for metric in found[0]:
            drawn.setdefault(metric, []).append(float(np.mean([values[metric] for values in found])))
    tail = (100 - LEVEL) / 2
    return {name: (float(np.percentile(v, tail)), float(np.percentile(v, 100 - tail))) for name, v in drawn.items()}


def summarise_predictions(task: Task, rows: Sequence[dict], resamples: int) -> dict[str, dict]:
    """By way of choosing the epoch: metrics of each seed's folds, their mean, and the pooled metrics with their intervals."""
    summary = {}
    for kind in dict.fromkeys(row["kind"] for row in rows):
        seeds: dict[int, list[dict]] = {}
        for row in rows:
            if row["kind"] == kind:
                seeds.setdefault(row["seed"], []).append(row)
        every = {seed: Pooled.of(found) for seed, found in sorted(seeds.items())}
        folds = {seed: by_fold(task, one) for seed, one in every.items()}
        values = [fold for of in folds.values() for fold in of.values()]
        pooled = [task.metrics(one.clips, one.outputs) for one in every.values()]
        metrics = list(numbers_of(pooled[0]))
        sets = [by_dataset(task, one) for one in every.values()]
        summary[kind] = {
            "folds": folds,
            "mean": {m: float(np.mean([v[m] for v in values])) for m in metrics},
            "std": {m: float(np.std([v[m] for v in values])) for m in metrics},
            "pooled": {m: float(np.mean([p[m] for p in pooled])) for m in metrics},
            "interval": interval(task, list(every.values()), resamples) if resamples else {},
            "datasets": {name: {m: float(np.mean([s[name][m] for s in sets])) for m in metrics} for name in sets[0]},
        }
        if "confusion" in pooled[0]:
            summary[kind]["confusion"] = np.sum([p["confusion"] for p in pooled], axis=0).tolist()
    return summary
