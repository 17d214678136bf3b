"""Supervised tasks by the names that ``--task`` takes.

To add one, write its file and a line here; code outside this package assigns ``TASKS["name"] = MyTask``.
"""

from collections.abc import Sequence

from avfmae.data.clip import Clip
from avfmae.tasks.blended import MultiLabel, Soft
from avfmae.tasks.classification import Classification
from avfmae.tasks.interface import Task
from avfmae.tasks.regression import Regression

TASKS: dict[str, type[Task]] = {kind.name: kind for kind in (Classification, Regression, Soft, MultiLabel)}


def task_class(name: str) -> type[Task]:
    """Raises ValueError for a name that is not registered."""
    if name not in TASKS:
        raise ValueError(f"task: got {name!r}, expected one of {', '.join(TASKS)}")
    return TASKS[name]


def make_task(name: str, clips: Sequence[Clip], source: object, classes: Sequence[str] = ()) -> Task:
    """The task that labelled clips pose. ``classes``: their names in index order; none: as the labels say.

    Raises:
        ValueError: no such task, or a label is not of it; names source and row.
    """
    kind = task_class(name)
    try:
        task = kind.of_clips(clips, classes)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    for clip in clips:
        try:
            task.target(clip)
        except ValueError as error:
            raise ValueError(f"{source}, row {clip.id + 1}: {error}") from error
    return task
