"""Prints the Triton sources that ``avfmae_benchmarks.aot`` compiles for each capability that is given, as JSON.

The form is {capability: {"all": sources, "largest": sources}} with sources = [[kernel, dtypes of its pointers, constants]].
A program, because a process that interprets Triton's kernels cannot compile them.
"""

import json
import sys

from avfmae_benchmarks import aot


def described(sources):
    return [
        [name, [kind for kind in signature.values() if kind.startswith("*")], constants]
        for _, name, signature, constants, *_ in sources.values()
    ]


if __name__ == "__main__":
    found = {arch: aot.sources(int(arch)) for arch in sys.argv[1:]}
    print(json.dumps({arch: {"all": described(s), "largest": described(aot.largest(s))} for arch, s in found.items()}))
