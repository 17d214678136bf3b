"""A pytest plugin (``-p avfmae_benchmarks.first.recorded``): each test's outcome goes into the journal, and tests that have one
are not run again.

AVFMAE_FIRST_OUT names the journal's folder.
"""

import os
from functools import cache
from pathlib import Path

from avfmae_benchmarks.first.journal import Journal

writes = True
REASON = 300  # characters of a failure that are kept


@cache
def journal() -> Journal:
    return Journal(Path(os.environ["AVFMAE_FIRST_OUT"]))


def outcomes() -> dict[str, str]:
    """By test, how it went the last time."""
    return {event["test"]: event["outcome"] for event in journal().events() if "test" in event}


def pytest_configure(config) -> None:
    global writes
    writes = not hasattr(config, "workerinput")  # pytest-xdist's workers report to the process that writes


def pytest_collection_modifyitems(config, items) -> None:
    known = outcomes()
    again = [item for item in items if item.nodeid in known]
    if again:
        config.hook.pytest_deselected(items=again)
        items[:] = [item for item in items if item.nodeid not in known]


def pytest_runtest_logreport(report) -> None:
    if writes and (report.when == "call" or (report.outcome != "passed" and report.when == "setup")):
        reason = {} if report.passed else {"reason": str(report.longrepr)[-REASON:]}
        journal().add(test=report.nodeid, outcome=report.outcome, seconds=round(report.duration, 2), **reason)
