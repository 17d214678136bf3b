"""Choices of autotuning are kept in a file and taken from it, for the same GPU and the same configurations."""

import json

import pytest

from avfmae_kernels import tuning

triton = pytest.importorskip("triton")
KEY = (11, True, "torch.bfloat16")


class Tuner:
    """What is used of Triton's autotuner, which needs a GPU."""

    def __init__(self, *warps):
        self.configs = [triton.Config({"PACK": 1}, num_warps=w) for w in warps]
        self.cache = {}


@pytest.fixture
def gpu(monkeypatch):
    name = ["H200"]
    monkeypatch.setattr(tuning, "gpu", lambda: name[0])
    return name


def test_choices_are_kept_and_recalled(gpu, tmp_path):
    file, first, second = tmp_path / "choices.json", Tuner(2, 4), Tuner(2, 4)
    first.cache[KEY] = first.configs[1]
    tuning.keep(first, "kernel", file)
    tuning.keep(Tuner(1, 2), "another", file)
    tuning.recall(second, "kernel", file)
    assert second.cache == {KEY: second.configs[1]} and second.cache[KEY].num_warps == 4
    assert set(json.loads(file.read_text())["H200"]) == {"kernel", "another"}


@pytest.mark.parametrize(
    ("name", "kernel", "warps"), [("H100", "kernel", (2, 4)), ("H200", "other", (2, 4)), ("H200", "kernel", (2, 8))]
)
def test_choices_of_another_gpu_kernel_or_list_are_not_taken(gpu, tmp_path, name, kernel, warps):
    file, first, second = tmp_path / "choices.json", Tuner(2, 4), Tuner(*warps)
    first.cache[KEY] = first.configs[1]
    tuning.keep(first, "kernel", file)
    gpu[0] = name
    tuning.recall(second, kernel, file)
    assert second.cache == {}


def test_a_file_that_is_none_is_named(gpu, tmp_path):
    (tmp_path / "choices.json").write_text("{")
    with pytest.raises(ValueError, match=r"AVFMAE_AUTOTUNE_FILE=.*choices\.json: is no JSON"):
        tuning.recall(Tuner(2), "kernel", tmp_path / "choices.json")
