"""What a first run has found, a JSON line an event, written as it happens: after a kill nothing is lost but what was under
way."""

import json
import os
import time
from pathlib import Path

ENDED = ("done", "left out", "failed", "over its limit")  # a part in any other state is run again


class Journal:
    """``folder/journal.jsonl``. Events are dicts; those of a part have its name and a state, the others a kind of their own."""

    def __init__(self, folder: Path):
        self.path = folder / "journal.jsonl"

    def add(self, **event) -> None:
        """Writes an event, and waits until the disk has it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        cut_off = self.path.exists() and not self.path.read_bytes().endswith(b"\n")  # by a kill in the middle of a line
        with self.path.open("a") as file:
            file.write("\n" * cut_off + json.dumps(event | {"time": time.strftime("%Y-%m-%dT%H:%M:%S")}) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def events(self) -> list[dict]:
        """All events, oldest first; lines that were cut off, or are no event, are left out."""
        found = []
        for line in self.path.read_text(errors="replace").splitlines() if self.path.exists() else []:
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return [event for event in found if isinstance(event, dict)]

    def states(self) -> dict[str, dict]:
        """The latest event of each part, in the order in which they began."""
        return {event["part"]: event for event in self.events() if "part" in event}

    def latest(self, kind: str):
        """What was noted last under ``kind``, or None."""
        return next((event[kind] for event in reversed(self.events()) if kind in event), None)
