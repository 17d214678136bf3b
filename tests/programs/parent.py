"""Starts a child that sleeps, writes its process id to the file that is given, and waits for it."""

import subprocess
import sys
from pathlib import Path

if __name__ == "__main__":
    child = subprocess.Popen(["sleep", "60"])
    Path(sys.argv[1]).write_text(str(child.pid))
    child.wait()
