"""The clips that a run has set aside, and why."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from avfmae.console import console
from avfmae.data.batch import Bad
from avfmae.files import printable, write_rows, write_table


class Quarantine:
    """The clips that were set aside, in ``quarantine.csv``: id, path, reason.

    Args:
        active: this process writes the list. resumed: the run goes on, and so does the list; else a former run's is removed.
    """

    def __init__(self, out: Path, clips: int, max_share: float, active: bool, resumed: bool):
        self.path, self.clips, self.max_share, self.active = out / "quarantine.csv", clips, max_share, active
        if active and not resumed:
            self.path.unlink(missing_ok=True)
        self.bad: dict[int, Bad] = {b.id: b for b in read_quarantine(self.path)} if resumed else {}
        self.begun = False  # whether this process has written the list; from then on it only adds to it

    def add(self, found: Sequence[Bad]) -> None:
        """Notes bad clips.

        Raises:
            RuntimeError: more than the allowed share of the clips is bad.
        """
        new = {b.id: b for b in found if b.id not in self.bad}
        if not new:
            return
        self.bad |= new
        if self.active:
            self._write(new.values())
            for b in new.values():
                console.print(printable(f"set aside: {b.path}: {b.reason}"), style="yellow", highlight=False)
        if len(self.bad) > self.max_share * self.clips:
            last = next(reversed(self.bad.values()))
            raise RuntimeError(
                f"{len(self.bad)} of {self.clips} clips are bad, more than max_bad_share = {self.max_share:g} allows; "
                f"the latest: {last.path}: {last.reason}. All are in {self.path}"
            )

    def _write(self, new: Iterable[Bad]) -> None:
        columns = ("id", "path", "reason")
        if self.begun:
            with open(self.path, "a", newline="", encoding="utf-8", errors="surrogateescape") as file:
                write_rows(file, columns, map(asdict, new), header=False)
            return
        write_table(self.path, columns, map(asdict, self.bad.values()))
        self.begun = True


def read_quarantine(path: Path) -> list[Bad]:
    """The clips that a run has set aside; none where it has no list."""
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        return [Bad(int(row["id"]), row["path"], row["reason"]) for row in csv.DictReader(file)]
