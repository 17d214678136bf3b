"""Processes that read media, each of them watched.

Decoders hang and crash on broken files, and leak memory. So they run in processes that name the clip that they are about to read.
A process that takes too long, or dies, is replaced, and the clip is reported. Processes are forked from a clean server that has
imported the readers and nothing that must not be forked (no CUDA, no threads); where there is none they are spawned. Scripts
therefore need the usual ``if __name__ == "__main__":``.

Tensors come back through shared memory, in slots: one is filled while another is read. Tensors that were made in a slot are not
copied if they are dropped in time; those that are kept longer, or wanted in page-locked memory, are copied once.
"""

import mmap
import multiprocessing
import os
import pickle
import signal
import tempfile
import time
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.reduction import DupFd
from typing import Any

import numpy as np
import torch

from avfmae.data.sources import KINDS, Source
from avfmae.data.sources.source import is_system_fault

AHEAD = 2  # tasks that a process has
LEASES = 2  # slots of a process that results may hold besides
ALIGNMENT = 64  # bytes, of every tensor in a slot
STARTS = 3  # so often a task is tried where the machine is at fault, or a process dies before it touched anything
KILLED = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)  # no decoder ends itself so; for want of memory processes are killed

Handler = Callable[[Any, "TaskContext"], Any]


@dataclass(frozen=True)
class WorkerFailure:
    """A process died, or took too long, while it touched this item."""

    item: int
    reason: str


class Workers:
    """Does tasks in processes, and gives the results in the tasks' order.

    Args:
        make: called once in each process, gives the function that does tasks. It, the tasks and the results are pickled.
        count: of processes, at least 1.
        limit: seconds for one item.
        recycle: tasks after which a process is replaced, so that what libraries leak is given back; None: never.
        retry: given a task and its failure, gives the task to do instead; None: the ``WorkerFailure`` itself is the result.
        pin: results' tensors are in page-locked memory.
    """

    def __init__(
        self,
        make: Callable[[], Handler],
        count: int,
        limit: float,
        recycle: int | None = None,
        retry: Callable[[Any, WorkerFailure], Any] = lambda task, failure: None,
        pin: bool = False,
    ):
        if count < 1:
            raise ValueError(f"workers: got {count}, expected at least 1")
        self.make, self.limit, self.recycle, self.retry, self.pin = make, limit, recycle, retry, pin
        kinds = multiprocessing.get_all_start_methods()
        self.context = multiprocessing.get_context("forkserver" if "forkserver" in kinds else "spawn")
        if "forkserver" in kinds:
            self.context.set_forkserver_preload(["avfmae.data.dataset"])
        self.processes = [_Process(self) for _ in range(count)]

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        for process in self.processes:
            process.kill()
        self.processes = []

    def results(self, tasks: Iterable) -> Iterator[tuple[Any, Any]]:
        """(task, result) for each task, in order; a task that was replaced comes as it was done.

        Raises:
            RuntimeError: a task raised, with its traceback; or processes die before they have begun.
        """
        tasks, done = iter(tasks), {}
        begun, given, exhausted = 0, 0, False  # tasks that processes were given, results that were given on
        while True:
            while not exhausted and begun - given < AHEAD * len(self.processes):
                free = [p for p in self.processes if p.takes_more()]
                if not free:
                    break
                try:
                    task = next(tasks)
                except StopIteration:
                    exhausted = True
                else:
                    min(free, key=lambda p: len(p.queue)).give(begun, task)
                    begun += 1
            if given in done:
                yield done.pop(given)
                given += 1
            elif exhausted and given == begun:
                return
            else:
                for process in self._ready():
                    done |= process.receive()

    def _ready(self) -> list["_Process"]:
        """Processes that have something to say, or have overstepped their time."""
        due = [p.noted[1] + self.limit - time.monotonic() for p in self.processes if p.noted[1]]
        said = wait([p.connection for p in self.processes if p.queue], timeout=max(0.0, min([*due, 1.0])) + 0.01)
        late = [p for p in self.processes if p.noted[1] and time.monotonic() - p.noted[1] > self.limit]
        return [p for p in self.processes if p.connection in said or p in late]


class _Process:
    """One process as the main one sees it: the tasks that it has, oldest first, and where their results will lie."""

    def __init__(self, workers: Workers):
        self.workers, self.queue, self.deaths = workers, deque(), 0
        self.slots = [_Slot(_memory()) for _ in range(AHEAD + LEASES)]
        self.leased: set[int] = set()  # slots that results still hold
        self.start()

    def start(self) -> None:
        context = self.workers.context
        self.noted = context.RawArray("d", 2)  # the item being touched, and since when; 0: none
        self.connection, theirs = context.Pipe()
        arguments = (self.workers.make, theirs, self.noted, self.slots, tuple(KINDS))
        self.process = context.Process(target=_work, args=arguments, daemon=True)
        self.process.start()
        theirs.close()
        self.done = 0
        for given in self.queue:
            self._send(given)

    def _send(self, what: tuple[int, Any, int] | None) -> None:
        with suppress(OSError):  # it has died; receive() will see
            self.connection.send(what)

    def takes_more(self) -> bool:
        spent = self.workers.recycle is not None and self.done + len(self.queue) >= self.workers.recycle
        if spent and not self.queue:
            self._send(None)
            self.process.join()
            self.start()
            spent = False
        return len(self.queue) < AHEAD and not spent

    def give(self, number: int, task: Any) -> None:
        taken = {slot for _, _, slot in self.queue} | self.leased
        self.queue.append((number, task, next(s for s in range(len(self.slots)) if s not in taken)))
        self._send(self.queue[-1])

    def receive(self) -> dict[int, tuple[Any, Any]]:
        """What came, by number; a process that died or is late is replaced."""
        try:
            late = self.noted[1] and time.monotonic() - self.noted[1] > self.workers.limit
            if not late or self.connection.poll():
                number, header, size, failed = self.connection.recv()
                task, slot = self.queue[0][1:]
                result = self._unpack(header, slot, size)
                if failed == "machine":
                    return self.restart(f"a data worker cannot go on: {result}")
                if failed:
                    raise RuntimeError(f"a data worker failed:\n{result}")
                self.queue.popleft()
                self.done, self.deaths = self.done + 1, 0
                return {number: (task, result)}
            reason = f"takes longer than {self.workers.limit:g} s"
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode
            reason = f"its decoder crashes ({signal.Signals(-code).name if code < 0 else f'exit code {code}'})"
            if not self.noted[1] or -code in KILLED:
                killed = (
                    f"data workers are killed ({signal.Signals(-code).name}); is there enough memory?"
                    if -code in KILLED
                    else None
                )
                return self.restart(killed or f"data workers die before they read anything: {reason}")
        item = int(self.noted[0])
        self.kill()
        number, task, slot = self.queue.popleft()
        failure, result = WorkerFailure(item, reason), {}
        if (instead := self.workers.retry(task, failure)) is None:
            result = {number: (task, failure)}
        else:
            self.queue.appendleft((number, instead, slot))
        self.start()
        return result

    def restart(self, reason: str) -> dict:
        """Gives the process's tasks to a new one, for a fault that is no clip's.

        Raises:
            RuntimeError: it is the third time (``STARTS``) without a result between.
        """
        self.kill()
        self.deaths += 1
        if self.deaths == STARTS:
            raise RuntimeError(f"{reason} ({STARTS} times)")
        self.start()
        return {}

    def _unpack(self, header: bytes, slot: int, size: int) -> Any:
        """The result, its tensors in the slot, which is leased until they are gone, or copied out of it."""
        result = pickle.loads(header)
        if not size:
            return result
        if self.workers.pin or len(self.leased) == LEASES:
            whole = torch.empty(size, dtype=torch.uint8, pin_memory=self.workers.pin)
            whole.numpy()[:] = self.slots[slot].view(size)
        else:
            lease = self.slots[slot].view(size).view(_Lease)
            self.leased.add(slot)
            weakref.finalize(lease, self.leased.discard, slot)
            whole = torch.from_numpy(lease)

        def tensor(p: _Place) -> torch.Tensor:
            bytes_ = torch.Size(p.shape).numel() * p.dtype.itemsize
            return whole[p.start : p.start + bytes_].view(p.dtype).view(p.shape)

        return result.map(tensor)

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


class _Lease(np.ndarray):
    """Bytes of a slot; can be watched, unlike plain arrays."""


class _Slot:
    """Memory that two processes map, as one of them sees it: it grows, and keeps its mapping."""

    def __init__(self, file: int):
        self.file, self.memory = file, None
        self.clear()

    def __getstate__(self) -> DupFd:
        return DupFd(self.file)  # pickled while a process is started, which gets the descriptor

    def __setstate__(self, file: DupFd) -> None:
        self.__init__(_owned(file.detach()))

    def clear(self) -> None:
        self.used, self.starts = 0, {}  # bytes given out, and the first of each array by its address

    def view(self, size: int) -> np.ndarray:
        """The first ``size`` bytes."""
        if self.memory is None or len(self.memory) < size:
            if os.fstat(self.file).st_size < size:
                os.ftruncate(self.file, size)
            self.memory = mmap.mmap(self.file, size)  # what uses the former one keeps it; both show the same bytes
        return np.frombuffer(self.memory, np.uint8, size)

    def empty(self, shape: tuple[int, ...]) -> np.ndarray:
        """An array of uint8 in the slot."""
        start, size = self.used, int(np.prod(shape))
        self.used += -(-size // ALIGNMENT) * ALIGNMENT
        array = self.view(self.used)[start : start + size].reshape(shape)
        self.starts[array.ctypes.data] = start
        return array

    def place(self, tensor: torch.Tensor) -> "_Place":
        """Where a tensor lies in the slot; it is put there if it does not lie there yet."""
        if (start := self.starts.get(tensor.data_ptr())) is None or not tensor.is_contiguous():
            array = self.empty((tensor.nbytes,))
            torch.from_numpy(array)[:] = tensor.contiguous().flatten().view(torch.uint8)
            start = self.starts[array.ctypes.data]
        return _Place(start, tuple(tensor.shape), tensor.dtype)


class TaskContext:
    """What a handler gets beside its task: a way to name the item that it is about to touch, and memory that is shared with the
    main process, so that results made there (``empty(shape)``, uint8) are not copied."""

    def __init__(self, noted, slot: _Slot):
        self._noted, self.empty = noted, slot.empty

    def note(self, item: int) -> None:
        """Call it before an item is touched: from then on its time runs."""
        self._noted[0], self._noted[1] = item, time.monotonic()


def _memory() -> int:
    """The descriptor of anonymous memory that processes can share."""
    if hasattr(os, "memfd_create"):
        return _owned(os.memfd_create("avfmae"))
    with tempfile.TemporaryFile() as file:
        return _owned(os.dup(file.fileno()))


class _owned(int):
    """A file descriptor that is closed when it is forgotten."""

    def __del__(self):
        os.close(self)


def _work(make: Callable[[], Handler], connection, noted, slots: list["_Slot"], kinds: tuple[type[Source], ...]) -> None:
    """What a process runs. ``kinds``: of sources that the main process has registered."""
    KINDS[:] = kinds
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process, which still needs its results
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    handle = make()
    while True:
        try:
            message = connection.recv()
        except EOFError:
            return  # the main process is gone
        if message is None:
            return
        number, task, which = message
        slot = slots[which]
        slot.clear()
        try:
            result, failed = handle(task, TaskContext(noted, slot)), ""
        except Exception as error:
            machine = is_system_fault(error)
            result = f"{type(error).__name__}: {error}" if machine else traceback.format_exc()
            failed = "machine" if machine else "code"
        noted[1] = 0.0
        header = pickle.dumps(result.map(slot.place) if hasattr(result, "map") else result)
        connection.send((number, header, 0 if failed else slot.used, failed))


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies in a slot."""

    start: int
    shape: tuple[int, ...]
    dtype: torch.dtype
