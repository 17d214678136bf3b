"""Processes that hang, die, fail or are replaced, and tensors that come back whole."""

import os

import pytest
import torch
from misbehaviour import make_misbehave, never_starts

from avfmae.data.workers import LEASES, WorkerFailure, Workers


def run(tasks, count=2, **options):
    with Workers(make_misbehave, count, options.pop("limit", 5.0), **options) as workers:
        return list(workers.results(tasks))


def test_results_come_in_order():
    tasks = [("fine", k) for k in range(40)]
    results = run(iter(tasks))
    assert [task for task, _ in results] == tasks and [r[1] for _, r in results] == list(range(40))
    assert len({r[2] for _, r in results}) == 2  # both processes worked


def test_what_hangs_or_dies_is_named_and_the_rest_is_done():
    tasks = [("fine", 0), ("hang", 1), ("fine", 2), ("die", 3), ("fine", 4), ("die", 5), ("fine", 6)]
    results = dict(run(tasks, limit=1.0))
    assert results["hang", 1] == WorkerFailure(1, "takes longer than 1 s")
    assert results["die", 3] == WorkerFailure(3, "its decoder crashes (SIGSEGV)")
    assert all(results["fine", k][1] == k for k in (0, 2, 4, 6))


def test_a_lost_task_can_be_replaced():
    lost = []

    def retry(task, what):
        lost.append(what.item)
        return "fine", task[1] + 100

    results = run([("die", k) if k % 3 == 0 else ("fine", k) for k in range(9)], retry=retry)
    assert sorted(lost) == [0, 3, 6] and [r[1] for _, r in results] == [100, 1, 2, 103, 4, 5, 106, 7, 8]


@pytest.mark.parametrize("what", ["fail", "fails in place"])
def test_an_error_of_our_own_is_told_with_its_traceback(what):
    with pytest.raises(RuntimeError, match="KeyError: 'no such thing'"):
        run([("fine", 0), (what, 1)])


def test_there_is_at_least_one_process():
    with pytest.raises(ValueError, match="workers: got 0, expected at least 1"):
        run([("fine", 0)], count=0)


def test_processes_are_recycled():
    results = run([("fine", k) for k in range(20)], count=1, recycle=5)
    pids = [r[2] for _, r in results]
    assert [r[1] for _, r in results] == list(range(20)) and len(set(pids)) == 4


def test_tensors_come_back_whole_whatever_their_size():
    tasks = [("tensors", k) for k in (3, 50_000, 1, 7, 200_000, 2)]
    for (_, number), result in run(iter(tasks), count=2):
        assert result.a.shape == (number, 3) and (result.a == number % 256).all() and result.a.dtype == torch.uint8
        assert torch.equal(result.b, torch.arange(number).float()[None])


def test_results_in_place_are_not_written_over_while_they_are_held():
    """All are kept, more than there are slots: those that cannot be leased are copied."""
    tasks = [("in place", k) for k in range(1, 30)]
    held = run(iter(tasks), count=2)
    for (_, number), result in held:
        assert result.a.shape == (number, 5) and (result.a == number % 251).all() and (result.b == number).all()


def test_slots_come_back_when_results_are_dropped():
    with Workers(make_misbehave, 1, 5.0) as workers:
        (process,) = workers.processes
        for (_, number), result in workers.results(("in place", k) for k in range(1, 20)):
            assert (result.a == number).all() and len(process.leased) <= LEASES
            del result
            assert not process.leased


def test_no_process_and_no_file_is_left():
    def open_files():
        return len(os.listdir("/proc/self/fd"))

    run([("fine", 0)])  # the server that forks them stays
    before = open_files()
    with Workers(make_misbehave, 3, 5.0) as workers:
        next(workers.results(("tensors", k) for k in range(1, 99)))
        pids = [p.process.pid for p in workers.processes]
    del workers
    assert open_files() <= before
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_processes_that_cannot_start_are_no_fault_of_the_files():
    with (
        Workers(never_starts, 1, 5.0) as workers,
        pytest.raises(RuntimeError, match=r"die before they read anything: .*exit code 3"),
    ):
        next(workers.results([("fine", 0)]))


@pytest.mark.parametrize(
    ("fault", "words"), [("killed", r"killed \(SIGKILL\); is there enough memory"), ("full", "Too many open files")]
)
def test_faults_of_the_machine_are_retried_and_then_told(fault, words, tmp_path):
    """They are laid on no clip: the task is done by a new process, or the run stops."""
    tasks = [("fine", 0), (f"{fault} {tmp_path / 'once'}", 1), ("fine", 2)]
    results = run(tasks, count=1, retry=lambda task, failure: pytest.fail(failure.reason))
    assert [task for task, _ in results] == tasks and [result[1] for _, result in results] == [0, 1, 2]
    with pytest.raises(RuntimeError, match=rf"{words}.*3 times"):
        run([("fine", 0), (fault, 1)], count=1, retry=lambda task, failure: pytest.fail(failure.reason))
