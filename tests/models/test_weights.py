"""Weights that do not fit, and weights whose bytes are not those that were saved."""

import pytest
import torch

import avfmae
from avfmae.checkpoints import read_about, save_weights

TINY = avfmae.ModelConfig.preset("tiny")


def test_another_size_under_a_models_own_names_is_no_lack():
    """What fine-tuning starts anew is left out; anything else is named with both sizes."""
    model = avfmae.AVFMAEForFinetuning(TINY, 2)
    state = model.state_dict()
    name = next(n for n in state if n not in avfmae.released_state_dict(model) and state[n].ndim > 1)
    with pytest.raises(ValueError, match=rf"{name} is \(1, 3\), expected \(.*another model size"):
        avfmae.load_released(model, state | {name: torch.zeros(1, 3)})
    report = avfmae.load_released(avfmae.AVFMAEForFinetuning(TINY, 5), state)
    assert report.resized == ["head.weight", "head.bias"] and report.missing == []


@pytest.mark.parametrize("part", ["tensors", "metadata"])
def test_a_flipped_bit_in_weights_is_found(part, tmp_path):
    model, path = avfmae.AVFMAEForPretraining(TINY), tmp_path / "weights.safetensors"
    save_weights(model, path, note="abcdef")
    data = bytearray(path.read_bytes())
    data[-1000 if part == "tensors" else data.index(b"abcdef")] ^= 2
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"weights\.safetensors: is no readable .*do not give the checksum"):
        avfmae.load_released(model, path) if part == "tensors" else read_about(path)


def test_equal_weights_have_equal_bytes(tmp_path):
    model, about = avfmae.AVFMAEForPretraining(TINY), {name: f'"{name}" \\ ümlaut\n\x1f' for name in "abcdefgh"}
    for place in range(3):
        save_weights(model, tmp_path / str(place), **about)
    assert len({(tmp_path / str(place)).read_bytes() for place in range(3)}) == 1
    assert read_about(tmp_path / "0").items() >= about.items()
    assert not avfmae.load_released(model, tmp_path / "0").missing
