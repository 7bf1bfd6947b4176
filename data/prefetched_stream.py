"""What was computed beforehand as the data of a training: every epoch is one permutation of all items."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch.utils.data import Dataset

from common.distributed import all_gather_objects
from common.errors import DataError
from data.config import GPTDataConfig, PrefetchedDataConfig
from data.skips import SkipCounter
from data.stream import Batch, Share, load_micro_batches


class PrefetchedStream:
    """The items of a run, as one rank sees them.

    Args:
        dataset: first position -> micro-batch, or the DataError that stands in its place.
        config: how they are loaded.
        share: what this rank takes of every step.
        fingerprint: SHA-256: two equal ones have the same sample at every position.
        what: "latents" or "tokens", for messages.

    In a distributed run every rank must build it.
    Raises: DataError if the ranks found different items.
    """

    steps: int | None = None

    def __init__(
        self, dataset: Dataset, config: PrefetchedDataConfig | GPTDataConfig, share: Share, fingerprint: str, what: str
    ):
        self.config, self.share = config, share
        self.skips = SkipCounter(0.0)
        self._dataset, self._fingerprint = dataset, fingerprint
        found = all_gather_objects(fingerprint)
        if other := [rank for rank, of_rank in enumerate(found) if of_rank != found[0]]:
            raise DataError(f"data.path: rank {other[0]} found other {what} in {Path(config.path)} than rank 0.")

    def micro_batches(self, first_step: int = 0) -> Iterator[Batch]:
        """This rank's micro-batches from a global step on, without end. Closing the iterator ends its workers.

        Raises: DataError if an item cannot be read, or a worker process died.
        """
        workers, ahead = self.config.workers, self.config.prefetch_batches
        return load_micro_batches(self._dataset, self.share, first_step, workers, ahead, self.skips)

    def fingerprint(self) -> str:
        """SHA-256: two equal ones have the same sample at every position."""
        return self._fingerprint
