"""Which tokens a mask keeps, by counter-based random numbers.

A clip's masks depend on (seed, epoch, clip id, stream) alone: not on the batch it is in, the worker that draws them,
the number of workers, or what was drawn before. They are NumPy arrays.
"""

from types import ModuleType

import numpy as np
import torch

from avfmae_kernels.dispatch import choose, register
from avfmae_kernels.sample_masks import reference

register("sample_masks", host=True, strict=False)
CPU = torch.device("cpu")


def _implementation() -> ModuleType:
    if choose("sample_masks", CPU) == "reference":
        return reference
    from avfmae_kernels import _host

    return _host


def random_bits(seed: int, epoch: int, clips: np.ndarray, stream: int, count: int) -> np.ndarray:
    """Uniform 32-bit numbers: Philox4x32-10 with key ``seed`` and counter (n // 4 + stream·2²⁴, epoch, clip id).

    Args:
        seed: 64 bits. epoch: 32 bits. stream: 0 to 255, one for each use, so that uses do not correlate.
        clips: (B,) clip ids, 64 bits each.
        count: numbers a clip, at most 2²⁶.

    Returns:
        (B, count) uint32.
    """
    clips = _check(seed, epoch, clips, stream)
    return _implementation().random_bits(seed=seed, epoch=epoch, clips=clips, stream=stream, count=count)


def choose_tokens(seed: int, epoch: int, clips: np.ndarray, stream: int, groups: np.ndarray, keep: int) -> np.ndarray:
    """For each clip, ``keep`` members of every group, uniformly without replacement.

    Each member draws a number from :func:`random_bits` (in the order of ``groups``); a group keeps its smallest,
    ties to the first.

    Args:
        seed, epoch, clips, stream: as for :func:`random_bits`.
        groups: (G, M) int64 token indices; one row for a plain random mask, one a region for a balanced one.
        keep: 0 to M.

    Returns:
        (B, G·keep) int64, ascending.
    """
    clips, groups = _check(seed, epoch, clips, stream), np.ascontiguousarray(groups, dtype=np.int64)
    if groups.ndim != 2:
        raise ValueError(f"groups: got shape {groups.shape}, expected (G, M)")
    if not 0 <= keep <= groups.shape[1]:
        raise ValueError(f"keep: got {keep}, expected 0 to {groups.shape[1]}, the size of a group")
    return _implementation().choose_tokens(seed=seed, epoch=epoch, clips=clips, stream=stream, groups=groups, keep=keep)


def _check(seed: int, epoch: int, clips: np.ndarray, stream: int) -> np.ndarray:
    for name, value, bits in (("seed", seed, 64), ("epoch", epoch, 32), ("stream", stream, 8)):
        if not 0 <= value < 2**bits:
            raise ValueError(f"{name}: got {value}, expected 0 to 2^{bits} - 1")
    clips = np.asarray(clips)
    if clips.ndim != 1 or clips.dtype.kind not in "iu" or (clips.size and int(clips.min()) < 0):
        raise ValueError(f"clips: got {clips.dtype} {clips.shape}, expected non-negative integers (B,)")
    return np.ascontiguousarray(clips, dtype=np.uint64)
