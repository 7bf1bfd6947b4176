"""Items in batches of one size, read ahead: how the tools and the validation go through a set of images."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")


class Turns:
    """Lets files wait while a network computes on all cores of the CPU.

    Every operation of a network waits for its slowest thread, so a file that is decoded on one of the cores meanwhile
    costs more than its own time (docs/performance.md). With a GPU, or a core to spare, both are worked on at once.

    Args:
        device: where the network computes.
    """

    def __init__(self, device: torch.device):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._apart = device.type == "cpu" and torch.get_num_threads() >= cores
        self._files = threading.Event()
        self._files.set()

    def of_files(self, work: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        """The same work, which does not begin while it is the network's turn."""

        def wait_and_work(*arguments: Arguments.args, **options: Arguments.kwargs) -> Result:
            self._files.wait()
            return work(*arguments, **options)

        return wait_and_work

    @contextlib.contextmanager
    def of_network(self) -> Iterator[None]:
        """In here the network computes, and waits for no file."""
        if self._apart:
            self._files.clear()
        try:
            yield
        finally:
            self._files.set()


def read_ahead(
    pool: ThreadPoolExecutor, work: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[Result]:
    """`map(work, items)` in a thread pool, in order, with a bounded number of results waiting."""
    waiting: deque[Future[Result]] = deque()
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def in_batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of `size` items; the last one may be shorter."""
    batch: list[Item] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def fill_up(batch: Sequence[Item], size: int) -> list[Item]:
    """A batch, brought to `size` with copies of its last item.

    Every batch then has one shape, so that the number of items does not change what is computed for one.
    """
    return [*batch, *batch[-1:] * (size - len(batch))]


def spread(total: int, count: int) -> list[int]:
    """`count` of the numbers below `total`, evenly spread; all of them if there are no more."""
    return list(range(total)) if count >= total else [i * total // count for i in range(count)]
