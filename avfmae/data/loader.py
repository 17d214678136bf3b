"""Batches from clips: read by processes that are watched, in an order that does not depend on how many there are."""

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

from avfmae.data.batch import Batch
from avfmae.data.dataset import ClipDataset
from avfmae.data.workers import TaskContext, WorkerFailure, Workers

Items = Sequence[tuple[int, int]]  # (epoch, position) of a batch's clips
Task = tuple[Items, dict[int, str]]  # a batch to read, and clips at which a process hung or died


@dataclass(frozen=True)
class _Reader:
    """Makes a process's reader (an object and not a closure, so that processes can be sent it)."""

    dataset: ClipDataset

    def __call__(self):
        return self.read

    def read(self, task: Task, context: TaskContext) -> Batch:
        items, bad = task
        self.dataset.note, self.dataset.empty = context.note, context.empty
        self.dataset.fatal |= bad
        return self.dataset.batch(items)


def loader(dataset: ClipDataset, batches: Iterable[Items], workers: int, pin: bool = False) -> Generator[Batch, None, None]:
    """Reads batches in order, a few ahead. A clip at which a process hangs or dies is set aside like any other bad clip.

    ``workers``: processes; 0: read here, unwatched. ``pin``: into page-locked memory, from which a GPU fetches by itself.
    """
    if not workers:
        for items in batches:
            batch = dataset.batch(items)
            yield batch.map(lambda t: t.pin_memory()) if pin else batch
        return
    bad: dict[int, str] = {}

    def without(task: Task, failure: WorkerFailure) -> Task:
        bad[failure.item] = failure.reason
        return task[0], dict(bad)

    batches = iter(batches)
    if (first := next(batches, None)) is None:
        return
    recycle = max(1, dataset.data.recycle // len(first))
    with Workers(_Reader(dataset), workers, dataset.data.clip_seconds, recycle, without, pin) as processes:
        for _, batch in processes.results((items, dict(bad)) for items in chain([first], batches)):
            yield batch
