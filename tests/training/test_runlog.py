"""What one sees of a run while it trains: on 80 columns the bar, the steps and the time left are there."""

import io

import pytest
from rich.console import Console

from avfmae.training import runlog

NUMBERS = {"loss": 1.23456, "clips_per_s": 12_345.6, "data_wait": 0.12, "memory_gb": 77.7}


@pytest.fixture
def terminal(monkeypatch):
    """A terminal of 80 columns; gives what it shows."""
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    monkeypatch.setattr(runlog, "console", console)
    return console


@pytest.mark.parametrize("title", ["pre-training base", "fine-tuning hicmae_base, fold 24"])
@pytest.mark.parametrize("steps", [10, 123_456])
def test_progress_fits_80_columns(title, steps, terminal, tmp_path):
    with runlog.RunLog(tmp_path, steps, 0, title, active=True) as log:
        for step in range(5):
            log.step(step, NUMBERS)
        log.progress.tasks[0].start_time -= 60.0  # so that there is a time left to tell
        with terminal.capture() as shown:
            terminal.print(log.progress.get_renderable())
    first, second = shown.get().rstrip("\n").split("\n")
    assert len(first) <= 80 and len(second.rstrip()) <= 80
    assert title in first and f"5/{steps}" in first and first.count("━") + first.count("╺") + first.count("╸") >= 10
    assert ":" in first.split(f"5/{steps}")[1]  # the time left
    assert second.split() == ["loss", "1.2346", "12345.6", "clips/s", "waiting", "for", "data", "12%", "77.7", "GB"]


def test_without_a_terminal_lines_are_printed(monkeypatch, tmp_path):
    console = Console(file=io.StringIO(), width=200)
    monkeypatch.setattr(runlog, "console", console)
    with runlog.RunLog(tmp_path, 3, 0, "pre-training tiny", active=True) as log:
        for step in range(3):
            log.step(step, NUMBERS)
    assert console.file.getvalue().splitlines() == [
        "pre-training tiny: step 3/3  loss 1.2346  12345.6 clips/s  waiting for data 12%  77.7 GB"
    ]
    assert [line["step"] for line in runlog.read_log(tmp_path / "log.jsonl")] == [0, 1, 2]
