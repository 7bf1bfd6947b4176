"""Bad samples: what is wrong with them, how many there are, and when they are too many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from common.errors import DataError

MIN_SAMPLES = 100
"""So many samples must have been seen before their share of bad ones can stop a run."""


@dataclass(frozen=True)
class Skip:
    """Something that was left out of the data.

    Args:
        kind: what is wrong, e.g. "truncated image" or "duplicate key".
        shard: name of the shard (or folder, or zip file), relative to the data set's path.
        key: sample key; empty when the whole shard is meant.
        detail: what the library said that found it.
    """

    kind: str
    shard: str
    key: str = ""
    detail: str = ""

    def __str__(self) -> str:
        place = f"{self.shard}: {self.key}" if self.key else self.shard
        return f"{place}: {self.kind}" + (f" ({self.detail})" if self.detail else "")


class BadSample(Exception):
    """One sample cannot be used. Always caught inside the package and turned into a `Skip`."""

    def __init__(self, kind: str, detail: str = ""):
        super().__init__(kind, detail)
        self.kind = kind
        self.detail = detail


def count_by_kind_and_shard(skips: Iterable[Skip]) -> dict[str, dict[str, int]]:
    """kind -> shard -> how many, both in alphabetical order."""
    counts = Counter((skip.kind, skip.shard) for skip in skips)
    table: dict[str, dict[str, int]] = {}
    for (kind, shard), count in sorted(counts.items()):
        table.setdefault(kind, {})[shard] = count
    return table


class SkipCounter:
    """How many samples a run has seen, how many of them were bad, of which kind and in which shard.

    Args:
        max_fraction: share of bad samples above which `check` raises.
        lost_at_start: what the index found before the run (damaged shards, duplicate keys); it is not part of the
            share, and is told with it.
    """

    def __init__(self, max_fraction: float, lost_at_start: Iterable[Skip] = ()):
        self.max_fraction = max_fraction
        self.lost_at_start = tuple(lost_at_start)
        self.seen = 0
        self.counts: Counter[tuple[str, str]] = Counter()
        self.conversions: Counter[str] = Counter()

    @property
    def skipped(self) -> int:
        """Number of bad samples so far."""
        return self.counts.total()

    def add(self, seen: int, skips: Iterable[Skip], conversions: dict[str, int]) -> None:
        """Count a batch: `seen` samples that were asked for, and what had to be skipped or converted for them."""
        self.seen += seen
        self.counts.update((skip.kind, skip.shard) for skip in skips)
        self.conversions.update(conversions)

    def by_kind(self) -> dict[str, int]:
        """kind -> number of bad samples."""
        totals: Counter[str] = Counter()
        for (kind, _), count in self.counts.items():
            totals[kind] += count
        return dict(sorted(totals.items()))

    def by_shard(self) -> dict[str, int]:
        """shard -> number of bad samples, the worst first."""
        totals: Counter[str] = Counter()
        for (_, shard), count in self.counts.items():
            totals[shard] += count
        return dict(sorted(totals.items(), key=lambda item: (-item[1], item[0])))

    def exceeded(self, seen: int, skipped: int) -> bool:
        """Whether too large a share of the samples is bad; the numbers are those of all ranks together."""
        return seen >= MIN_SAMPLES and skipped > self.max_fraction * seen

    def check(self) -> None:
        """Raise DataError that names the worst shards if too large a share of the samples was bad.

        For one rank's counts, or for those of all: `gather().check()`.
        """
        if not self.exceeded(self.seen, self.skipped):
            return
        worst = ", ".join(f"{shard} ({count})" for shard, count in list(self.by_shard().items())[:5])
        kinds = ", ".join(f"{kind} ({count})" for kind, count in self.by_kind().items())
        lost = Counter(skip.kind for skip in self.lost_at_start)
        before = ", ".join(f"{kind} ({count})" for kind, count in sorted(lost.items()))
        raise DataError(
            f"{self.skipped} of {self.seen} samples were bad ({self.skipped / self.seen:.1%}), expected at most "
            f"data.max_skip_fraction = {self.max_fraction:g}. Worst shards: {worst}. Kinds: {kinds}."
            + (f" Left out before the start: {before}." if before else "")
            + " Repair or remove these shards, or raise data.max_skip_fraction."
        )

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers for a checkpoint."""
        counts: dict[str, dict[str, int]] = {}
        for (kind, shard), count in sorted(self.counts.items()):
            counts.setdefault(kind, {})[shard] = count
        return {"seen": self.seen, "counts": counts, "conversions": dict(sorted(self.conversions.items()))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from the numbers of `state_dict`."""
        self.seen = int(state["seen"])
        self.counts = Counter({(k, shard): n for k, by in state["counts"].items() for shard, n in by.items()})
        self.conversions = Counter(state["conversions"])

    def gather(self) -> SkipCounter:
        """The counts of all ranks together; every rank must call it.

        For a checkpoint: store this sum and load it on rank 0 only, so that it holds for any number of ranks.
        """
        from common import distributed  # imports torch, which reading data does without

        total = SkipCounter(self.max_fraction, self.lost_at_start)
        for state in distributed.all_gather_objects(self.state_dict()):
            other = SkipCounter(self.max_fraction)
            other.load_state_dict(state)
            total.seen += other.seen
            total.counts.update(other.counts)
            total.conversions.update(other.conversions)
        return total
