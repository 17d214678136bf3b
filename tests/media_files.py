"""Frames and sounds that tell their place, for small real media files."""

import wave
from pathlib import Path

import numpy as np

RATE = 44_100


def counted_frames(count, height=64, width=112):
    """Frames that tell their number: a bright square that moves, and brightness in steps."""
    frames = np.full((count, height, width, 3), 40, np.uint8)
    for i in range(count):
        x, y = 8 * (i % (width // 8)), 8 * (i // (width // 8) % (height // 8))
        frames[i, y : y + 8, x : x + 8] = (250, 250 - 2 * (i % 100), 60 + 2 * (i % 90))
    return frames


def click(at, seconds, rate=RATE, channels=1):
    """Silence with a burst of 1 kHz that starts at ``at`` seconds."""
    t = np.arange(round(seconds * rate)) / rate
    sound = np.where((t >= at) & (t < at + 0.05), 0.8 * np.sin(2 * np.pi * 1000 * t), 0)
    return np.tile(sound, (channels, 1))


def write_wav(path: Path, samples: np.ndarray, rate: int) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
