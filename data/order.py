"""The order of samples: a pure function of seed and position, so that a position is all a checkpoint needs.

Position p lies in epoch p // N. Each epoch has a seeded permutation of the shards; within each window of
`window_shards` consecutive shards of that permutation, all their samples are permuted. Batch k of size B is
positions kB to (k+1)B - 1, running on across epochs; nothing is dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from common.random import numpy_generator


def seeded_permutation(count: int, seed: int, purpose: str, *indices: int) -> np.ndarray:
    """A permutation of 0 .. count-1, int64.

    The order of raw 64-bit draws of PCG64: unlike `Generator.permutation`, it cannot change with NumPy's version.
    """
    draws = numpy_generator(seed, purpose, *indices).bit_generator.random_raw(count)
    return np.argsort(draws, kind="stable")


@dataclass(frozen=True)
class _Epoch:
    shards: np.ndarray  # permuted shard numbers
    window_starts: np.ndarray  # position within the epoch where each window starts, and N at the end


class SampleOrder:
    """Position -> sample index.

    Args:
        shard_sizes: number of samples of each shard; samples are numbered shard after shard.
        window_shards: shards per window.
        seed: the run's seed.
    """

    def __init__(self, shard_sizes: Sequence[int] | np.ndarray, window_shards: int, seed: int):
        sizes = np.asarray(shard_sizes, dtype=np.int64)
        self._starts = np.concatenate([[0], np.cumsum(sizes)])
        self._sizes = sizes
        self._window_shards = window_shards
        self.seed = seed
        # Two epochs and a few windows: loaders run a little ahead, also across a boundary.
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)
        self._window = lru_cache(maxsize=4)(self._make_window)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __reduce__(self):
        return SampleOrder, (self._sizes, self._window_shards, self.seed)

    def sample_at(self, position: int) -> int:
        """Index of the sample at a position (0, 1, ... without end)."""
        assert len(self) > 0 and position >= 0
        number, window, within = self._place(position)
        return int(self._window(number, window)[within - self._epoch(number).window_starts[window]])

    def shards_ahead(self, position: int) -> list[int]:
        """Numbers of the shards whose samples stand in the window of a position and in the window after it."""
        number, window, _ = self._place(position)
        following = (number, window + 1) if window + 2 < len(self._epoch(number).window_starts) else (number + 1, 0)
        ahead = [*self._shards_of(number, window), *self._shards_of(*following)]
        return list(dict.fromkeys(int(shard) for shard in ahead))

    def _place(self, position: int) -> tuple[int, int, int]:
        """(epoch, window of the epoch, position within the epoch)."""
        number, within = divmod(int(position), len(self))
        return number, int(np.searchsorted(self._epoch(number).window_starts, within, side="right")) - 1, within

    def _make_epoch(self, number: int) -> _Epoch:
        shards = seeded_permutation(len(self._sizes), self.seed, "shard order", number)
        ends = np.cumsum(self._sizes[shards])
        last_of_window = np.append(ends[self._window_shards - 1 :: self._window_shards], ends[-1])
        return _Epoch(shards, np.concatenate([[0], np.unique(last_of_window)]))

    def _make_window(self, number: int, window: int) -> np.ndarray:
        shards = self._shards_of(number, window)
        samples = np.concatenate([np.arange(self._starts[s], self._starts[s + 1]) for s in shards])
        return samples[seeded_permutation(len(samples), self.seed, "sample order", number, window)]

    def _shards_of(self, number: int, window: int) -> np.ndarray:
        epoch = self._epoch(number)
        ends = np.cumsum(self._sizes[epoch.shards])
        first, last = epoch.window_starts[window], epoch.window_starts[window + 1]
        return epoch.shards[(ends > first) & (ends <= last)]


def micro_batch_positions(
    step: int, rank: int, accumulation: int, *, global_batch: int, micro_batch: int, accumulate: int
) -> range:
    """Positions of one micro-batch.

    Global micro-batch m of a step covers `micro_batch` positions from step * global_batch + m * micro_batch; rank r
    takes m = r * accumulate + a. So what a step sees does not depend on how ranks and accumulation share it.
    """
    start = step * global_batch + (rank * accumulate + accumulation) * micro_batch
    return range(start, start + micro_batch)
