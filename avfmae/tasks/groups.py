"""Metrics of groups of clips, and how far apart groups are."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from avfmae.data.clip import Clip
from avfmae.tasks.interface import Task
from avfmae.tasks.pooling import Pooled, interval, numbers_of

RESAMPLES = 500  # of the bootstrap
FEW = 5  # people; of fewer, a bootstrap tells nothing


def metrics_of_groups(
    task: Task, clips: Sequence[Clip], outputs: np.ndarray, names: Sequence[str | None]
) -> list[dict[str, Any]]:
    """Of each group, in the order of names: ``group`` (its name; None: clips without one), how many ``clips`` and ``people``,
    ``metrics`` by name, and their ``interval``: 95 % by bootstrap over people, (None, None) where these are fewer than ``FEW``.

    Args:
        outputs: (n, O) of the model. names: (n,) of each clip's group.
    """
    found, rows = [], np.array([name or "" for name in names])
    for name in sorted(set(names), key=lambda n: (n is None, n)):
        chosen = np.flatnonzero(rows == (name or ""))
        part = Pooled([clips[i] for i in chosen.tolist()], outputs[chosen], [""] * len(chosen))
        metrics = task.metrics(part.clips, part.outputs)
        numbers, people = numbers_of(metrics), {(clip.dataset, clip.subject or clip.path) for clip in part.clips}
        sure = interval(task, [part], RESAMPLES) if len(people) >= FEW else dict.fromkeys(numbers, (None, None))
        about = {"group": name, "clips": len(chosen), "people": len(people), "metrics": numbers, "interval": sure}
        found.append(about | _lacking(metrics))
    return found


def largest_gaps(groups: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of each metric, between the groups that have a name: ``gap``, and the groups with the ``lowest`` and the ``highest``."""
    named = [group for group in groups if group["group"] is not None]
    if len(named) < 2:
        return {}
    gaps = {}
    for metric in named[0]["metrics"]:
        ordered = sorted(named, key=lambda group: group["metrics"][metric])
        low, high = ordered[0], ordered[-1]
        gap = high["metrics"][metric] - low["metrics"][metric]
        gaps[metric] = {"gap": gap, "lowest": low["group"], "highest": high["group"]}
    return gaps


def _lacking(metrics: dict) -> dict[str, list[str]]:
    """Classes that no clip of a group has; of these UAR says nothing."""
    lacking = [name for name, recall in metrics.get("recall", {}).items() if recall is None]
    return {"without_clips": lacking} if lacking else {}
