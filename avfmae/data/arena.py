"""Memory for the frames of a batch, so that windows of one size are decoded where the batch is, and not copied there."""

from collections.abc import Callable

import numpy as np

LARGEST_WHOLE = 256 * 256  # pixels; of larger frames only the crop leaves the worker


class Arena:
    """Memory for ``count`` windows of frames; ``empty`` makes an uint8 array of a shape."""

    def __init__(self, count: int, empty: Callable[[tuple[int, ...]], np.ndarray] = lambda shape: np.empty(shape, np.uint8)):
        self.count, self.empty, self.used, self.memory = count, empty, 0, None

    def place(self, shape: tuple[int, ...]) -> np.ndarray:
        """An uint8 array for the next window. It lies outside the arena if it is large or its shape is not the first window's."""
        small = shape[1] * shape[2] <= LARGEST_WHOLE
        if self.memory is None and small:
            self.memory = self.empty((self.count, *shape))
        if not small or self.memory.shape[1:] != shape or self.used == self.count:
            return np.empty(shape, np.uint8)
        self.used += 1
        return self.memory[self.used - 1]

    def holds(self, windows: list[np.ndarray]) -> bool:
        """Whether these windows are all of the memory, in order."""
        return self.memory is not None and len(windows) == self.count and all(
            w.ctypes.data == m.ctypes.data for w, m in zip(windows, self.memory, strict=True)
        )  # fmt: skip
