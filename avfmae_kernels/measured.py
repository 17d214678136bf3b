"""The order of an op's implementations on a GPU by what was measured: ``measured.csv``, made from ``avfmae bench kernels``' rows.

A row has an op, a chip, kinds and sizes of the arguments, and microseconds by implementation. Arguments follow the nearest row of
their kinds: that of the nearest chip, by compute capability, and there of the nearest sizes, by the sum of |ln(size / measured)|.
"""

import csv
import math
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

PATH = Path(__file__).with_name("measured.csv")
KEYS = ("op", "capability", "kinds", "sizes")  # of a row; its other columns are implementations


def described(args: tuple) -> tuple[str, str]:
    """Kinds and sizes of an op's arguments: ``"bfloat16:2 int None"`` and ``"256 8 3"`` of a tensor (256, 8), 3 and None."""
    kinds, sizes = [], []
    for value in args:
        if isinstance(value, Tensor):
            kinds.append(f"{str(value.dtype).removeprefix('torch.')}:{value.ndim}")
            sizes += value.shape
        elif isinstance(value, (list, tuple)):
            kinds.append(f"{type(value[0]).__name__}:{len(value)}" if value else "none")
            sizes += [number for number in value if isinstance(number, int)]
        elif isinstance(value, int) and not isinstance(value, bool):
            kinds.append("int")
            sizes.append(value)
        else:
            kinds.append(str(value))
    return " ".join(kinds), " ".join(map(str, sizes))


def read(path: Path = PATH) -> dict[str, list[dict[str, str]]]:
    """The rows by op; none where there is no file."""
    rows: dict[str, list[dict[str, str]]] = {}
    if path.exists():
        with open(path, newline="") as file:
            for row in csv.DictReader(file):
                rows.setdefault(row["op"], []).append(row)
    return rows


ROWS = read()


def ordered(op: str, implementations: tuple[str, ...], capability: int, args: tuple) -> tuple[str, ...]:
    """The implementations by the time that they took at the nearest arguments; what was not measured keeps its place behind."""
    if op not in ROWS or torch.compiler.is_compiling():  # sizes are symbols to a compiler
        return implementations
    times = _nearest(op, capability, *described(args))
    return tuple(sorted(implementations, key=lambda name: times.get(name, math.inf)))


@cache
def _nearest(op: str, capability: int, kinds: str, sizes: str) -> dict[str, float]:
    def distance(row: dict[str, str]) -> tuple[int, float]:
        pairs = zip(sizes.split(), row["sizes"].split(), strict=True)
        return abs(int(row["capability"]) - capability), sum(abs(math.log(max(int(a), 1) / max(int(b), 1))) for a, b in pairs)

    alike = [row for row in ROWS[op] if row["kinds"] == kinds]
    if not alike:
        return {}
    return {name: float(time) for name, time in min(alike, key=distance).items() if time and name not in KEYS}
