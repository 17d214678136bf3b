"""Runs a program where importing any of the named libraries fails as if it were not installed.

python without.py av,cv2 PROGRAM.py ARGUMENTS
python without.py av,cv2 -m MODULE ARGUMENTS
"""

import runpy
import sys

if __name__ == "__main__":
    _, hidden, *command = sys.argv
    sys.modules.update(dict.fromkeys(filter(None, hidden.split(","))))
    if command[0] == "-m":
        sys.argv = command[1:]
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = command
        runpy.run_path(command[0], run_name="__main__")
