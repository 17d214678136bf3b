"""What a model says of clips: computed a batch after the other, shared by processes, and written as a table."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from avfmae.data.batch import Bad
from avfmae.data.clip import Clip
from avfmae.data.dataset import ClipDataset
from avfmae.data.loader import loader
from avfmae.data.preprocess import preprocess
from avfmae.files import write_rows, write_table
from avfmae.models.finetuning import AVFMAEForFinetuning
from avfmae.tasks.interface import Task
from avfmae.training.dist import Processes


@dataclass
class Predictions:
    """What a model says of clips.

    Attributes:
        outputs: (outputs,) averaged over views, by clip id. bad: clips that cannot be read.
        flags: what is odd about clips, by clip id.
    """

    outputs: dict[int, np.ndarray] = field(default_factory=dict)
    bad: list[Bad] = field(default_factory=list)
    flags: dict[int, str] = field(default_factory=dict)

    def gathered(self, dist: Processes) -> "Predictions":
        """Those of all processes."""
        whole = Predictions()
        for part in dist.gather(self):
            whole.outputs |= part.outputs
            whole.bad += part.bad
            whole.flags |= part.flags
        return whole

    def rows(self, task: Task, clips: Sequence[Clip]) -> list[dict]:
        """A row a clip; of one that cannot be read, ``note`` says why."""
        notes = self.flags | {b.id: b.reason for b in self.bad}
        return [
            {"path": clip.path, "start": clip.start, "end": clip.end, "split": clip.split, "label": clip.label}
            | (task.prediction(clip, self.outputs[clip.id]) if clip.id in self.outputs else {})
            | {"note": notes.get(clip.id)}
            for clip in clips
        ]


@torch.no_grad()
def predict(
    model: AVFMAEForFinetuning, dataset: ClipDataset, positions: Sequence[int], clips_a_pass: int, device: torch.device
) -> Predictions:
    """What the model says of the clips at ``positions`` of the dataset."""
    model.eval()
    batches = [[(0, i) for i in positions[k : k + clips_a_pass]] for k in range(0, len(positions), clips_a_pass)]
    found = Predictions()
    for batch in loader(dataset, batches, min(dataset.data.workers, len(batches))):
        found.bad += batch.bad
        found.flags |= batch.flags
        if batch.clips:
            batch = preprocess(batch.to(device), model.cfg)
            logits = model(batch.video, batch.audio).logits.float()
            means = logits.unflatten(0, (-1, batch.views)).mean(1).cpu().numpy()
            found.outputs |= dict(zip(batch.clips, means, strict=True))
    return found


def write_predictions(rows: Sequence[dict], path: Path | None) -> None:
    """Writes a CSV table, or prints it. Columns without a value are left out."""
    columns = dict.fromkeys(name for row in rows for name, value in row.items() if name == "path" or value is not None)
    if "note" in columns:
        columns["note"] = columns.pop("note")  # the last one
    if path is None:
        write_rows(sys.stdout, list(columns), rows, others="ignore")
        return
    write_table(path, list(columns), rows, "ignore")
