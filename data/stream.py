"""What a training takes from a data set, whatever it is made of: micro-batches, step after step without end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from common.errors import DataError
from data.order import micro_batch_positions
from data.skips import Skip, SkipCounter

_SECONDS_AFTER_SIGTERM = 10


class MicroBatch(Protocol):
    """Samples of consecutive positions.

    Attributes:
        positions: where they stand in the endless order.
        skips: bad samples whose places were taken by substitutes, one for each such place.
        conversions: kind -> number of samples that had to be converted.
    """

    positions: range
    skips: list[Skip]
    conversions: dict[str, int]


Batch = TypeVar("Batch", bound=MicroBatch, covariant=True)


class TrainingStream(Protocol[Batch]):
    """The data of a run, as one rank sees it. What a batch holds depends on configuration, seed and step alone.

    Attributes:
        skips: counts bad samples.
        steps: after so many steps the run ends, as all has been seen once; None: it is not ended by its data.
    """

    skips: SkipCounter
    steps: int | None

    def micro_batches(self, first_step: int = 0) -> Iterator[Batch]:
        """This rank's micro-batches from a global step on. Closing the iterator ends its worker processes."""
        ...

    def fingerprint(self) -> str:
        """SHA-256: two equal ones have the same sample at every position."""
        ...

    def describe(self) -> str:
        """What was found, for the log of a run's start; one line per fact."""
        ...


@dataclass(frozen=True)
class Share:
    """What one rank takes of every step.

    Args:
        global_batch: samples per optimiser step over all ranks.
        micro_batch: samples per micro-batch on one rank.
        rank, world_size, accumulate: how a step is split; global_batch = micro_batch * world_size * accumulate.
        pin_memory: hand out batches in page-locked memory (for copies to a GPU).
    """

    global_batch: int
    micro_batch: int
    rank: int = 0
    world_size: int = 1
    accumulate: int = 1
    pin_memory: bool = False

    def __post_init__(self) -> None:
        whole = self.global_batch == self.micro_batch * self.world_size * self.accumulate
        assert whole, "a step is not a whole number of micro-batches"
        assert 0 <= self.rank < self.world_size

    def first_positions(self, first_step: int) -> Iterator[int]:
        """First positions of the rank's micro-batches, step after step without end."""
        step = first_step
        while True:
            for accumulation in range(self.accumulate):
                yield micro_batch_positions(
                    step,
                    self.rank,
                    accumulation,
                    global_batch=self.global_batch,
                    micro_batch=self.micro_batch,
                    accumulate=self.accumulate,
                ).start
            step += 1


class _FirstPositions:
    """What tells a loader which micro-batches to fetch."""

    def __init__(self, share: Share, first_step: int):
        self._share, self._first_step = share, first_step

    def __iter__(self) -> Iterator[int]:
        return self._share.first_positions(self._first_step)


def load_micro_batches(
    dataset: Dataset, share: Share, first_step: int, workers: int, prefetch_batches: int, skips: SkipCounter
) -> Iterator[Batch]:
    """A rank's micro-batches from a global step on, prepared by loader processes, counted by `skips`.

    Args:
        dataset: first position -> micro-batch, or the DataError that stands in its place.
        workers: loader processes; 0: this one.
        prefetch_batches: micro-batches that each of them prepares ahead.

    Closing the iterator (or dropping it) ends its worker processes.
    Raises: DataError that the data set gave, or when a worker process died.
    """
    loader = DataLoader(
        dataset,
        sampler=_FirstPositions(share, first_step),
        batch_size=None,
        collate_fn=_unchanged,
        num_workers=workers,
        prefetch_factor=prefetch_batches if workers else None,
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        worker_init_fn=_start_worker,
        pin_memory=share.pin_memory,
    )
    batches = _start(loader)
    try:
        while True:
            batch = _next(batches)
            if isinstance(batch, DataError):
                raise batch
            skips.add(len(batch.positions), batch.skips, batch.conversions)
            yield batch
    finally:
        del batches  # ends the workers now, also while a traceback keeps this frame


def _start(loader: DataLoader) -> Iterator[Batch | DataError]:
    """Start a loader's processes.

    torch then raises from a signal handler, at any place of the training process, when one of them dies. `next`
    notices too, within 5 seconds and where it can be handled: so the handler is taken back.
    """
    if threading.current_thread() is not threading.main_thread():
        return iter(loader)
    handler = signal.getsignal(signal.SIGCHLD)
    batches = iter(loader)
    signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)
    return batches


def _next(batches: Iterator[Batch | DataError]) -> Batch | DataError:
    try:
        return next(batches)
    except (RuntimeError, OSError, EOFError) as error:
        if not _worker_died(error):
            raise
        raise DataError(
            f"A data loader process died ({error}). Out of memory is the usual cause: lower data.workers or "
            "data.prefetch_batches; data.workers = 0 shows the error itself."
        ) from error


def _worker_died(error: Exception) -> bool:
    """Whether the loader found a worker dead (it says so), or lost it while taking over a batch."""
    lost_connection = isinstance(error, (ConnectionError, FileNotFoundError, EOFError))
    passed_on = "Caught" in str(error) and "in DataLoader worker process" in str(error)
    return not passed_on and (lost_connection or "DataLoader worker" in str(error))


def _unchanged(batch: Batch) -> Batch:
    return batch


def _start_worker(worker: int) -> None:
    """Set up a loader process.

    Job managers signal all processes of a job. The training process then finishes its step and needs its batches for
    that, so a worker ignores the request to checkpoint and outlives the request to stop by some seconds.
    """
    torch.set_num_threads(1)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_SECONDS_AFTER_SIGTERM))
    threading.Thread(target=_end_with_training_process, daemon=True).start()


def _end_with_training_process() -> None:
    """End this loader process at once when the training process was killed, not with its next look, 5 seconds later.

    It holds copies of that process's connections: as long as they are open, the other ranks wait for a dead one.
    """
    multiprocessing.parent_process().join()
    os._exit(1)
