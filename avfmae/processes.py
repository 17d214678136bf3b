"""Processes that work for another one, and how many are worth starting."""

import os
from multiprocessing import parent_process
from threading import Thread


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def end_with_parent() -> None:
    """Ends this process when the one that started it has ended, however that was: else it goes on with what was given to it, and
    holds the folder that a run is to be continued in."""
    if (parent := parent_process()) is not None:
        Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
