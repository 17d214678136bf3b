"""Two processes that work for this one, and tell their numbers; it waits for them."""

import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from avfmae.processes import end_with_parent


def work(seconds: float) -> None:
    print(os.getpid(), flush=True)
    time.sleep(seconds)


if __name__ == "__main__":
    with ProcessPoolExecutor(2, get_context("spawn"), end_with_parent) as pool:
        list(pool.map(work, [60.0] * 6))
