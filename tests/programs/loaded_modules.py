"""Prints the names of all modules that are loaded after ``avfmae ARGUMENTS``, or after ``avfmae.NAME`` is read (--name NAME)."""

import contextlib
import io
import sys

if __name__ == "__main__":
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        import avfmae

        if sys.argv[1] == "--name":
            getattr(avfmae, sys.argv[2])
        elif sys.argv[1] == "--command":
            from avfmae.cli import main

            main(sys.argv[2:])
    print(*sys.modules)
