"""Items in batches of one size, read ahead: how the tools and the validation go through a set of images."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


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
