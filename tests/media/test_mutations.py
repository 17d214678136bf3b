"""Damaged and hostile files of every kind: no crash, no hang, no traceback, and nothing in them is executed."""

import json

import pytest
from processes import run_program

KINDS = ["media", "checkpoints", "indexes", "manifests"]


def check(folder, count, *kinds):
    done = run_program("mutations", 0, count, folder, *kinds)
    assert done.returncode == 0, f"died: {done.stderr[-1500:]}"
    for kind, found in json.loads(done.stdout.splitlines()[-1]).items():
        assert found["faults"] == {} and found["told"] > count / 10, (kind, found)


@pytest.mark.slow
def test_damaged_files_end_in_a_message_and_execute_nothing(tmp_path):
    check(tmp_path, 8, *KINDS)


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", KINDS)
def test_five_hundred_damaged_files_of_each_kind(kind, tmp_path):
    check(tmp_path, 500, kind)
