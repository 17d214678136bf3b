"""Checkpoints on disk: weights in the released layout, and the state of a training run."""

from avfmae.checkpoints.pretrained import load_pretrained, push_to_hub, save_pretrained, weights_file
from avfmae.checkpoints.weights import (
    LoadReport,
    load_released,
    read_about,
    read_weights,
    released_gradients,
    released_state_dict,
    save_weights,
)

__all__ = [
    "LoadReport", "load_pretrained", "load_released", "push_to_hub", "read_about", "read_weights", "released_gradients",
    "released_state_dict", "save_pretrained", "save_weights", "weights_file",
]  # fmt: skip
