"""Which clips make up each step: a function of the seed and the step, whatever the number of processes and of micro-batches."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

ORDER = 17  # a stream of random numbers; 0 to 3 are the masks', 16 is the replacements' of bad clips


@dataclass(frozen=True, eq=False)
class BatchSampler:
    """Which clips make up each step, whatever the number of processes and of accumulated micro-batches.

    Attributes:
        clips: in the list. total_batch: clips a step, over all processes. micro_batch: clips a forward pass a process.
        rank, world: this process and their number.
        shards: (clips,) number of each clip's shard, or None: clips are shuffled all together.
        mixed_shards: how many shards' clips are shuffled together, one lot after the other.
        weights: (clips,) sampling weights for class-balanced training; None: every clip once an epoch.
    """

    clips: int
    total_batch: int
    micro_batch: int
    rank: int = 0
    world: int = 1
    seed: int = 0
    weights: np.ndarray | None = None
    shards: np.ndarray | None = None
    mixed_shards: int = 64

    @classmethod
    def fit(cls, clips: int, total_batch: int, largest_micro: int | None, **rest) -> "BatchSampler":
        """The sampler with the largest micro-batch that is at most ``largest_micro`` and divides the total batch evenly.

        Raises:
            ValueError: the total batch does not share out over the processes.
        """
        world = rest.get("world", 1)
        if total_batch % world:
            raise ValueError(f"total_batch: {total_batch} clips do not share out over {world} processes")
        share = total_batch // world
        fitting = (m for m in range(min(share, largest_micro or share), 0, -1) if share % m == 0)
        return cls(clips, total_batch, next(fitting), **rest)

    @property
    def accumulation(self) -> int:
        return self.total_batch // (self.micro_batch * self.world)

    @property
    def steps_per_epoch(self) -> int:
        return max(1, self.clips // self.total_batch)

    def order(self, epoch: int) -> np.ndarray:
        """The clips' order in an epoch; a list shorter than one batch goes round."""
        rng = np.random.Generator(np.random.Philox(key=[self.seed, epoch], counter=[0, 0, ORDER, 2**63]))
        if self.weights is not None:
            p = self.weights / np.sum(self.weights)
            return rng.choice(self.clips, size=max(self.clips, self.total_batch), p=p)
        if self.shards is not None and self.clips >= self.total_batch:
            return self._by_shards(rng)
        return np.resize(rng.permutation(self.clips), max(self.clips, self.total_batch))

    @cached_property
    def lanes(self) -> int:
        """Parts of the total batch that read shards of their own. A process has some lanes; their number does not depend on
        it."""
        most = min(64, 1 if self.shards is None else len(np.unique(self.shards)))
        return next(n for n in range(max(1, most), 0, -1) if self.total_batch % n == 0)

    def _by_shards(self, rng: np.random.Generator) -> np.ndarray:
        """Shards are dealt to lanes; each lane goes through its shards by lots, the clips of a lot shuffled together."""
        assert self.shards is not None
        names, sizes = np.unique(self.shards, return_counts=True)
        dealt: list[list[int]] = [[] for _ in range(self.lanes)]
        held = np.zeros(self.lanes, int)
        for k in rng.permutation(len(names)):
            lane = int(held.argmin())
            dealt[lane].append(int(names[k]))
            held[lane] += sizes[k]
        members = dict(zip(names, np.split(np.argsort(self.shards, kind="stable"), sizes.cumsum()[:-1]), strict=True))
        lot, share = max(1, self.mixed_shards // self.lanes), self.total_batch // self.lanes
        # Written in place: many small arrays would leave the heap full of holes
        shuffled, order = np.empty(self.clips, np.int32), np.empty(self.clips, np.int32)
        lanes, end = [], 0
        for mine in dealt:
            begin = end
            for k in range(0, len(mine), lot):
                clips = rng.permutation(np.concatenate([members[n] for n in mine[k : k + lot]]))
                begun, end = end, end + len(clips)
                shuffled[begun:end] = clips
            lanes.append(shuffled[begin:end])
        whole = min(map(len, lanes)) // share * share
        head = order[: whole * len(lanes)].reshape(-1, len(lanes), share)  # (steps, lanes, share)
        for i, lane in enumerate(lanes):
            head[:, i] = lane[:whole].reshape(-1, share)
        order[head.size :] = rng.permutation(np.concatenate([lane[whole:] for lane in lanes]))
        return order

    def micro_batches(self, first_step: int, last_step: int) -> Iterator[list[tuple[int, int]]]:
        """This process's (epoch, position) lists from one step up to another, ``accumulation`` of them a step.

        An epoch's order is made once, when its first step is asked for.
        """
        ordered, order = -1, np.zeros(0, int)
        for step in range(first_step, last_step):
            epoch, within = divmod(step, self.steps_per_epoch)
            if epoch != ordered:
                ordered, order = epoch, self.order(epoch)
            rows = order[within * self.total_batch :][: self.total_batch]
            for part in rows.reshape(self.world, self.accumulation, self.micro_batch)[self.rank].tolist():
                yield [(epoch, i) for i in part]
