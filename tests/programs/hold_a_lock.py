"""Holds the lock that it is told of until it is killed."""

import sys
import time

from avfmae.files import locked

with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
