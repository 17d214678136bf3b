"""Mask sampling in NumPy: what csrc/host/sample_masks.cpp computes, bit for bit, and the fallback where it is missing."""

import numpy as np

LOW = np.uint64(0xFFFFFFFF)


def philox4x32(counter: np.ndarray, key: int) -> np.ndarray:
    """Philox4x32-10 (Salmon et al., SC 2011) on (..., 4) 32-bit counters held in uint64; returns the same shape."""
    c0, c1, c2, c3 = np.moveaxis(counter, -1, 0)
    k0, k1 = key & 0xFFFFFFFF, key >> 32
    for _ in range(10):
        a, b = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)  # 32 x 32 -> 64 bits
        c0, c1, c2, c3 = (b >> np.uint64(32) ^ c1 ^ np.uint64(k0), b & LOW, a >> np.uint64(32) ^ c3 ^ np.uint64(k1), a & LOW)
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=-1)


def random_bits(seed: int, epoch: int, clips: np.ndarray, stream: int, count: int) -> np.ndarray:
    blocks = np.arange(-(-count // 4), dtype=np.uint64) | np.uint64(stream << 24)
    counter = np.empty((len(clips), len(blocks), 4), np.uint64)
    counter[..., 0] = blocks
    counter[..., 1] = epoch
    counter[..., 2] = (clips & LOW)[:, None]
    counter[..., 3] = (clips >> np.uint64(32))[:, None]
    return philox4x32(counter, seed).reshape(len(clips), -1)[:, :count].astype(np.uint32)


def choose_tokens(seed: int, epoch: int, clips: np.ndarray, stream: int, groups: np.ndarray, keep: int) -> np.ndarray:
    keys = random_bits(seed, epoch, clips, stream, groups.size).reshape(len(clips), *groups.shape)
    order = np.argsort(keys, axis=-1, kind="stable")[..., :keep]  # (B, G, keep)
    chosen = np.take_along_axis(np.broadcast_to(groups, keys.shape), order, axis=-1)
    return np.sort(chosen.reshape(len(clips), -1), axis=-1)
