"""The order in which a GPU's kernels are tried: ``avfmae_kernels/measured.csv``, from the newest rows of every GPU's kernels."""

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from avfmae.files import atomic_write
from avfmae_benchmarks import results
from avfmae_kernels import dispatch, measured


@contextmanager
def arguments_of() -> Iterator[dict[str, tuple]]:
    """The arguments with which each op's implementation is chosen inside, by op."""
    seen: dict[str, tuple] = {}
    choose = dispatch.choose

    def noting(name, device, args=()):
        seen[name] = args
        return choose(name, device, args)

    dispatch.choose = noting
    try:
        yield seen
    finally:
        dispatch.choose = choose


def described(seen: dict[str, tuple], op: str) -> dict[str, str]:
    """What a row says of the call whose arguments were seen: an op, or its gradient. Nothing where clips were cropped for it."""
    if "crop_clips" in seen:
        return {}
    called = next((name for name in (f"{op}_backward", op) if seen.get(name)), None)
    return (
        {}
        if called is None
        else dict(zip(("called", "kinds", "sizes"), (called, *measured.described(seen[called])), strict=True))
    )


def write(folder: Path = results.FOLDER, path: Path = measured.PATH) -> Path:
    """Makes the table anew."""
    table: dict[tuple, dict[str, str]] = {}
    for rows in results.latest([r for r in results.read("kernels", folder) if r.get("capability") and r.get("called")]).values():
        for row in rows:
            if row["us"]:
                key = row["called"], row["capability"], row["kinds"], row["sizes"]
                table.setdefault(key, {})[row["implementation"]] = row["us"]
    implementations = "triton", "cuda", "reference"
    with atomic_write(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow((*measured.KEYS, *implementations))
        writer.writerows((*key, *(times.get(name, "") for name in implementations)) for key, times in sorted(table.items()))
    return path
