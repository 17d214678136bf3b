"""Checkpoints on disk: weights in the released layout, and the state of a training run."""

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
    "LoadReport", "load_released", "read_about", "read_weights", "released_gradients", "released_state_dict", "save_weights",
]  # fmt: skip
