"""How a data set is divided into parts: each is computed by one rank, written at once, and never touched again."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """Consecutive samples of a data set.

    Args:
        rank: of the process whose share it is; it stands in the names of its files.
        number: which part of that share it is.
        start, stop: first sample, and one past the last.
    """

    rank: int
    number: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """Its name, as it stands in the names of files."""
        return f"rank{self.rank:02d}_shard{self.number:03d}"


def divide(samples: int, ranks: int, per_part: int, max_per_rank: int | None = None) -> list[Part]:
    """Divide samples into `ranks` equal shares of consecutive ones, and each share into parts.

    Args:
        per_part: samples of a part; the last one of a share may have fewer.
        max_per_rank: only the first so many of each share.
    Returns: the parts, share by share.
    """
    parts = []
    for rank in range(ranks):
        start, stop = samples * rank // ranks, samples * (rank + 1) // ranks
        if max_per_rank is not None:
            stop = min(stop, start + max_per_rank)
        for number, first in enumerate(range(start, stop, per_part)):
            parts.append(Part(rank, number, first, min(first + per_part, stop)))
    return parts
