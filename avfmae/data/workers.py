"""Processes that read media for us, each of them watched.

Decoders hang and crash on broken files, and leak. So they run in processes that say what they are about to touch; one that takes too
long with it, or dies of it, is replaced, and what it touched is named. Processes are forked from a clean server that has imported the
readers and nothing that must not be forked (no CUDA, no threads); where there is none they are spawned. Scripts therefore
need the usual ``if __name__ == "__main__":``.

Tensors come back through memory that both sides map: two slots a process, so that one is filled while the other is emptied.
"""

import mmap
import multiprocessing
import os
import pickle
import signal
import tempfile
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.reduction import DupFd
from typing import Any

import torch

SLOTS = 2
ALIGNMENT = 64  # bytes, of every tensor in a slot
STARTS = 3  # a process that dies so often before it touched anything is not the files' fault

Handler = Callable[[Any, Callable[[int], None]], Any]  # (task, note): calls note(item) before it touches an item


@dataclass(frozen=True)
class Lost:
    """What became of a task whose process did not survive: the item that was being touched, and what happened."""

    item: int
    reason: str


class Workers:
    """Does tasks in processes, and gives the results in the tasks' order.

    Args:
        make: called once in each process, gives the function that does tasks. It, the tasks and the results are pickled.
        count: of processes.
        limit: seconds for one item.
        recycle: tasks after which a process is replaced, so that what libraries leak is given back; None: never.
        retry: given a task and what was lost, says what to do in its stead; None: the ``Lost`` itself is the result.
        pin: results' tensors are in page-locked memory.
    """

    def __init__(
        self,
        make: Callable[[], Handler],
        count: int,
        limit: float,
        recycle: int | None = None,
        retry: Callable[[Any, Lost], Any] = lambda task, lost: None,
        pin: bool = False,
    ):
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
            while not exhausted and begun - given < SLOTS * len(self.processes):
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
        self.slots = [_memory() for _ in range(SLOTS)]
        self.start()

    def start(self) -> None:
        context = self.workers.context
        self.noted = context.RawArray("d", 2)  # the item being touched, and since when; 0: none
        self.connection, theirs = context.Pipe()
        self.process = context.Process(
            target=_work, args=(self.workers.make, theirs, self.noted, [DupFd(s) for s in self.slots]), daemon=True
        )
        self.process.start()
        theirs.close()
        self.done = 0
        for number, task, slot in self.queue:
            self.connection.send((number, task, slot))

    def takes_more(self) -> bool:
        spent = self.workers.recycle is not None and self.done + len(self.queue) >= self.workers.recycle
        if spent and not self.queue:
            self.connection.send(None)
            self.process.join()
            self.start()
            spent = False
        return len(self.queue) < SLOTS and not spent

    def give(self, number: int, task: Any) -> None:
        taken = {slot for _, _, slot in self.queue}
        self.queue.append((number, task, next(s for s in range(SLOTS) if s not in taken)))
        with suppress(OSError):  # it has died; receive() will see
            self.connection.send(self.queue[-1])

    def receive(self) -> dict[int, tuple[Any, Any]]:
        """What came, by number; a process that died or is late is replaced."""
        try:
            late = self.noted[1] and time.monotonic() - self.noted[1] > self.workers.limit
            if not late or self.connection.poll():
                number, header, size, failed = self.connection.recv()
                task, slot = self.queue[0][1:]
                result = _unpack(header, self.slots[slot], size, self.workers.pin)
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
        item, touched = int(self.noted[0]), self.noted[1] > 0
        self.kill()
        if not touched:
            self.deaths += 1
            if self.deaths == STARTS:
                raise RuntimeError(f"data workers die before they read anything: {reason}")
            self.start()
            return {}
        number, task, slot = self.queue.popleft()
        lost, result = Lost(item, reason), {}
        if (instead := self.workers.retry(task, lost)) is None:
            result = {number: (task, lost)}
        else:
            self.queue.appendleft((number, instead, slot))
        self.start()
        return result

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


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


def _work(make: Callable[[], Handler], connection, noted, slots: list[DupFd]) -> None:
    """The life of a process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process, which still needs its results
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    files = [slot.detach() for slot in slots]
    handle = make()

    def note(item: int) -> None:
        noted[0], noted[1] = item, time.monotonic()

    while True:
        try:
            message = connection.recv()
        except EOFError:
            return  # the main process is gone
        if message is None:
            return
        number, task, slot = message
        try:
            result, failed = handle(task, note), False
        except Exception:
            result, failed = traceback.format_exc(), True
        noted[1] = 0.0
        connection.send((number, *_pack(result, files[slot]), failed))


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies in a slot."""

    start: int
    shape: tuple[int, ...]
    dtype: torch.dtype


def _pack(result: Any, file: int) -> tuple[bytes, int]:
    """Puts the tensors of a result that can ``map`` over them into shared memory. Returns the rest, pickled, and their size."""
    if not hasattr(result, "map"):
        return pickle.dumps(result), 0
    tensors: list[torch.Tensor] = []
    size = 0

    def place(tensor: torch.Tensor) -> _Place:
        nonlocal size
        tensors.append(tensor)
        start, size = size, size + -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
        return _Place(start, tuple(tensor.shape), tensor.dtype)

    header = pickle.dumps(result.map(place))
    if size:
        if os.fstat(file).st_size < size:
            os.ftruncate(file, size)
        with mmap.mmap(file, size) as memory:
            whole, at = torch.frombuffer(memory, dtype=torch.uint8), 0
            for tensor in tensors:
                whole[at : at + tensor.nbytes] = tensor.contiguous().flatten().view(torch.uint8)
                at += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
            del whole
    return header, size


def _unpack(header: bytes, file: int, size: int, pin: bool) -> Any:
    result = pickle.loads(header)
    if not size:
        return result
    whole = torch.empty(size, dtype=torch.uint8, pin_memory=pin)
    with mmap.mmap(file, size) as memory:
        shared = torch.frombuffer(memory, dtype=torch.uint8)
        whole.copy_(shared)  # the slot is free at once, and the copy is where a GPU can fetch it
        del shared

    def tensor(p: _Place) -> torch.Tensor:
        bytes_ = torch.Size(p.shape).numel() * p.dtype.itemsize
        return whole[p.start : p.start + bytes_].view(p.dtype).view(p.shape)

    return result.map(tensor)
