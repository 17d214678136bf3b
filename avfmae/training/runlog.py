"""A run's log: JSON lines, TensorBoard files if asked for, and a progress bar."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from avfmae.console import console
from avfmae.extras import need
from avfmae.files import atomic_write


def memory_gb(device: torch.device) -> float:
    """Peak memory of the device that trains: a GPU's allocations, or this process's resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    import psutil  # which a benchmark does without

    return psutil.Process().memory_info().rss / 1e9


class TrainingProgress(Progress):
    """Title, bar, steps and the time left on one line, a step's numbers on a line below: both fit 80 columns."""

    def get_renderables(self) -> Iterator[RenderableType]:
        for task in self.tasks:
            yield self.make_tasks_table([task])
            yield Text(task.fields["text"], style="dim", no_wrap=True, overflow="ellipsis")


class RunLog:
    """``log.jsonl`` (a line a logged step), TensorBoard files if asked for, and the progress bar, of the main process only."""

    def __init__(self, out: Path, steps: int, first_step: int, title: str, active: bool, tensorboard: bool = False):
        self.active = active
        if not active:
            return
        self.board = None
        if tensorboard:
            need("tensorboard", "tensorboard", "--tensorboard")
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(out / "tensorboard", purge_step=first_step)
        out.mkdir(parents=True, exist_ok=True)
        self.path = out / "log.jsonl"
        kept = [line for line in read_log(self.path) if line["step"] < first_step]  # a resumed run rewrites what it repeats
        with atomic_write(self.path) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self.file = open(self.path, "a", buffering=1)  # noqa: SIM115  (closed in __exit__)
        self.progress = TrainingProgress(
            TextColumn("{task.description}"), BarColumn(bar_width=None), MofNCompleteColumn(), TimeRemainingColumn(),
            console=console, disable=not console.is_terminal, expand=True,
        )  # fmt: skip
        self.task = self.progress.add_task(title, total=steps, completed=first_step, text="")
        self.title, self.steps, self.printed = title, steps, time.monotonic()

    def __enter__(self) -> "RunLog":
        if self.active:
            self.progress.start()
        return self

    def __exit__(self, *_) -> None:
        if self.active:
            self.progress.stop()
            self.file.close()
            if self.board is not None:
                self.board.close()

    def step(self, step: int, values: dict[str, float]) -> None:
        """One optimizer step's numbers."""
        if not self.active:
            return
        self.file.write(json.dumps({"step": step, **values}) + "\n")
        self._to_board(step, values)
        text = (f"loss {values['loss']:.4f}  {values['clips_per_s']:.1f} clips/s  waiting for data {values['data_wait']:.0%}"
                f"  {values['memory_gb']:.1f} GB")  # fmt: skip
        self.progress.update(self.task, completed=step + 1, text=text)
        if self.progress.disable and (time.monotonic() - self.printed > 30 or step + 1 == self.steps):
            self.printed = time.monotonic()
            console.print(f"{self.title}: step {step + 1}/{self.steps}  {text}", highlight=False)

    def evaluation(self, step: int, metrics: dict) -> None:
        """An evaluation's metrics; nested tables go to the JSON lines only."""
        if not self.active:
            return
        self.file.write(json.dumps({"step": step, "evaluation": metrics}) + "\n")
        for split, values in metrics.items():
            if isinstance(values, dict):
                self._to_board(step, {f"{split}/{name}": value for name, value in values.items() if isinstance(value, float)})

    def _to_board(self, step: int, values: dict[str, float]) -> None:
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)

    def say(self, text: str) -> None:
        if self.active:
            console.print(text, highlight=False)


def read_log(path: Path) -> list[dict]:
    """The lines of a log, without a last one that was not written to its end."""
    lines = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines
