"""What one sees of a run while it trains: on 80 columns the bar, the steps and the time left are there."""

import io

import pytest
from rich.console import Console

from avfmae.training import runlog

NUMBERS = {"loss": 1.23456, "clips_per_s": 12_345.6, "data_wait": 0.12, "memory_gb": 77.7}


def terminal(width: int) -> Console:
    return Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)


@pytest.mark.parametrize("title", ["pre-training base", "fine-tuning hicmae_base, fold 24"])
@pytest.mark.parametrize("steps", [10, 123_456])
def test_progress_fits_80_columns(title, steps, monkeypatch, tmp_path):
    monkeypatch.setattr(runlog, "console", terminal(80))
    shown = terminal(80)
    with runlog.RunLog(tmp_path, steps, 0, title, active=True) as log:
        log.step(0, NUMBERS)
        log.step(steps // 2 - 1, NUMBERS)
        shown.print(log.progress.get_renderable())
    first, second = shown.file.getvalue().rstrip("\n").split("\n")
    assert len(first) <= 80 and len(second.rstrip()) <= 80
    bar, time_left = first.removeprefix(title).split(f"{steps // 2}/{steps}")
    assert first.startswith(title) and bar.count("━") >= 10 and ":" in time_left
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
