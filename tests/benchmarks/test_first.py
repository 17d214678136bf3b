"""A GPU's first run, on a processor and tiny shapes: every part runs, is killed and gone on with, and the page says what it
is."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from processes import PROGRAMS, environment, run_program, run_python

from avfmae_benchmarks import results
from avfmae_benchmarks.first import __main__ as runner
from avfmae_benchmarks.first import process
from avfmae_benchmarks.first.journal import Journal
from avfmae_benchmarks.first.parts import PARTS, Failed, LeftOut, Part, Run

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


def first(out, *arguments):
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_first.py"), "--device", "cpu", "--out", str(out), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment())


def wait_for(condition, process, seconds=600):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < end, process.stdout.read()
        time.sleep(0.05)


@pytest.mark.exhaustive
def test_a_dry_run_goes_on_where_it_was_killed(tmp_path):
    """Its parts are processes; those that compare sides are run in this one below."""
    chosen = ("--parts", "hicmae", "kernels", "bf16", "sanitizer")
    journal, begun = Journal(tmp_path), first(tmp_path, *chosen[:3])
    wait_for(lambda: results.read("kernels", tmp_path), begun)  # in the middle of a part, with a row that is written
    begun.kill()
    begun.wait()
    before, rows = journal.states(), len(results.read("kernels", tmp_path))
    assert before["hicmae"]["state"] == "done" and before["kernels"]["state"] == "begun" and "bf16" not in before
    time.sleep(1)
    assert len(results.read("kernels", tmp_path)) == rows  # the part's process has died with it
    again = first(tmp_path, *chosen)
    said, _ = again.communicate()
    assert again.returncode == 0, said + (tmp_path / "log.txt").read_text()[-3000:]
    states = {name: event["state"] for name, event in journal.states().items()}
    done = ("doctor", "ahead", "bf16", "hicmae", "kernels")
    assert states == {**dict.fromkeys(done, "done"), "sanitizer": "left out"}
    times = Counter(event["part"] for event in journal.events() if event.get("state") == "begun")
    assert times == {"doctor": 2, "ahead": 2, "kernels": 2, "bf16": 1, "hicmae": 1, "sanitizer": 1}
    assert once("step", tmp_path, "pair", "side") == {("ours float32 and hicmae float32", s) for s in ("ours", "hicmae")}
    measured = once("kernels", tmp_path, "op", "case", "precision", "direction", "implementation")
    assert {op for op, *_ in measured} == {"gated_sum", "gelu_backward"}
    page = (tmp_path / "page.html").read_text()
    assert "Dry run on a processor" in page and page.count("data:image/png;base64") == 2 and 'src="http' not in page
    assert {p.name for p in tmp_path.iterdir()} == {
        "journal.jsonl", "log.txt", "step.csv", "kernels.csv", "roofline.png", "page.html"}  # fmt: skip
    kept = run_python(ROOT / "benchmarks" / "gpu_first.py", "--out", tmp_path, "--keep")
    assert kept.returncode and "holds a dry run" in kept.stderr


def once(subject, folder, *names):
    """The values of these columns in all rows; none is measured twice."""
    found = Counter(tuple(row[name] for name in names) for row in results.read(subject, folder))
    assert found and set(found.values()) == {1}, found
    return set(found)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "pair"),
    [
        pytest.param("compiled", "ours float32 and hicmae-compiled float32", marks=pytest.mark.exhaustive),
        pytest.param("huge", "ours float32 and released float32", marks=pytest.mark.exhaustive),
        pytest.param("finetuning", "ours float32 and released float32", marks=pytest.mark.exhaustive),
        ("sides", "ours float32 and ours-eager float32"),
    ],
)
def test_a_part_that_compares_two_sides(name, pair, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda model, **_: model)  # as a dry run does
    (part,) = (part for part in PARTS if part.name == name)
    assert part.work(Run(tmp_path, "cpu"))
    assert {found for found, _ in once("step", tmp_path, "pair", "side")} == {pair}


@pytest.mark.exhaustive
def test_the_parts_that_profile_the_step_and_scale_it(tmp_path):
    parts, run = {part.name: part for part in PARTS}, Run(tmp_path, "cpu")
    assert parts["step"].work(run) and parts["scaling"].work(run).startswith("best: tiny at batch")
    assert {pair for pair, _ in once("step", tmp_path, "pair", "side")} == {"ours float32"}
    assert once("scaling", tmp_path, "size", "batch") == {("tiny", "2"), ("tiny", "4")}
    kernels = {name for name, *_ in Journal(tmp_path).latest("kernels")}
    assert "avfmae::add_layer_norm_backward" in kernels


@pytest.fixture
def supervised(tmp_path, monkeypatch):
    """Runs parts of the test's own, in their processes; gives the exit code, and each part's last event."""

    def run(parts, *arguments):
        monkeypatch.setattr(runner, "PARTS", parts)
        monkeypatch.setattr(process, "run", in_a_fork(parts))
        code = runner.main(["--device", "cpu", "--out", str(tmp_path), *arguments])
        return code, Journal(tmp_path).states()

    def in_a_fork(parts):
        by_name = {part.name: part for part in parts}

        def run(command, seconds, log, environment):
            name = command[command.index("--work") + 1]
            if name == "page":
                return 0
            child = os.fork()
            if child == 0:
                runner.NAMES = by_name
                code = runner.work(argparse.Namespace(out=tmp_path, device="cpu", work=name))
                os._exit(code)
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                if (done := os.waitpid(child, os.WNOHANG))[0]:
                    return os.waitstatus_to_exitcode(done[1])
                time.sleep(0.02)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None

        return run

    return run


def raises(error):
    def work(run):
        raise error

    return work


def test_a_part_that_fails_or_takes_too_long_is_told_and_the_next_goes_on(supervised, capsys):
    parts = (
        Part("wrong", "", 9, raises(Failed("two are wrong"))),
        Part("broken", "", 9, raises(KeyError("x"))),
        Part("dies", "", 9, lambda run: os._exit(7)),
        Part("hangs", "", 1, lambda run: time.sleep(60)),
        Part("absent", "", 9, raises(LeftOut("no tool"))),
        Part("good", "", 9, lambda run: "all well"),
    )
    code, states = supervised(parts)
    assert code == 1 and {name: event["state"] for name, event in states.items()} == {
        "wrong": "failed", "broken": "failed", "dies": "failed", "hangs": "over its limit", "absent": "left out", "good": "done"
    }  # fmt: skip
    assert (
        states["wrong"]["says"] == "two are wrong"
        and "KeyError" in states["broken"]["says"]
        and "ended with 7" in states["dies"]["says"]
    )
    assert "failed: wrong, broken, dies, hangs" in capsys.readouterr().out


def test_what_does_not_fit_into_the_time_is_left_for_the_next_command(supervised, monkeypatch, capsys):
    monkeypatch.setattr(runner, "PAGE_SECONDS", 0)
    monkeypatch.setattr(runner, "LEAST", 1)
    parts = (
        Part("short", "", 9, lambda run: "x"),
        Part("long", "", 60, lambda run: time.sleep(60)),
        Part("later", "", 60, lambda run: "y"),
    )
    code, states = supervised(parts, "--minutes", "0.05")
    assert code == 0 and states["long"]["state"] == "stopped" and "later" not in states
    assert "left for the next command: long, later" in capsys.readouterr().out
    quick = (parts[0], Part("long", "", 60, lambda run: "z"), parts[2])
    code, states = supervised(quick)
    assert code == 0 and {event["state"] for event in states.values()} == {"done"}


def test_a_process_past_its_time_is_killed_with_its_children(tmp_path):
    note = tmp_path / "pid"
    command = [sys.executable, PROGRAMS / "parent.py", note]
    assert process.run(list(map(str, command)), 2, tmp_path / "log", dict(os.environ)) is None
    child = Path("/proc") / note.read_text() / "stat"
    assert not child.exists() or child.read_text().split(") ")[1][0] == "Z"


def test_a_line_that_was_cut_off_costs_only_itself(tmp_path):
    journal = Journal(tmp_path)
    journal.add(part="a", state="done")
    with journal.path.open("a") as file:
        file.write(json.dumps({"part": "b", "state": "done"})[:-4])
    journal.add(part="c", state="begun")
    assert list(journal.states()) == ["a", "c"]


@pytest.mark.slow
def test_results_of_another_machine_are_not_mixed_in(tmp_path):
    Journal(tmp_path).add(where={"device": "NVIDIA H200", "date": "then"})
    ended = first(tmp_path, "--parts", "doctor")
    said, _ = ended.communicate()
    assert ended.returncode == 1 and "holds results of NVIDIA H200" in said and "nothing can be measured here" in said


@pytest.mark.exhaustive
def test_what_is_compiled_ahead_is_what_a_launch_looks_for(tmp_path):
    pytest.importorskip("triton")
    done = run_program("compile_ahead", env=environment(TRITON_CACHE_DIR=str(tmp_path / "cache")))
    assert done.returncode == 0, done.stderr[-3000:]


def test_rows_are_kept_once_and_never_of_a_dry_run(tmp_path, monkeypatch):
    out, kept = tmp_path / "out", tmp_path / "kept"
    monkeypatch.setattr(results, "FOLDER", kept)
    with pytest.raises(SystemExit, match="holds no run"):
        runner.main(["--out", str(out), "--keep"])
    assert not out.exists()
    results.append("step", [{"date": "t", "device": "H200", "ms": 1.5}], out)
    Journal(out).add(begun=True, device="cpu")
    with pytest.raises(SystemExit, match="holds a dry run"):
        runner.main(["--out", str(out), "--keep"])
    Journal(out).add(begun=True, device="cuda")
    assert runner.main(["--out", str(out), "--keep"]) == runner.main(["--out", str(out), "--keep"]) == 0
    assert results.read("step", kept) == [{"date": "t", "device": "H200", "ms": "1.5"}]
