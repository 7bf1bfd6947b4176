"""Statistics of prefetched latents, by which diffusion models normalise them.

`all`: every stored latent, of mirrored images too, in one pass of float64 sums. `sample10k`: the reference's rule, at
most 10,000 latents of unmirrored images; the reference draws them without a seed, here the choice is keyed by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from common.random import numpy_generator
from data.latents import write_statistics
from evaluation.batches import in_batches
from networks.latent_statistics import LatentStatistics

StatisticsRule = Literal["all", "sample10k"]
SAMPLE_SIZE = 10_000
_BATCH = 256


def merged_statistics(parts: Iterable[Mapping[str, Any]]) -> LatentStatistics:
    """The statistics of parts (`LatentStatistics.to_values`), merged in their order."""
    first, *others = (LatentStatistics.from_values(dict(values)) for values in parts)
    for other in others:
        first.merge(other)
    return first


def sampled_statistics(count: int, latent: Callable[[int], Tensor], seed: int) -> LatentStatistics:
    """Statistics of at most 10,000 latents, drawn without replacement.

    Args:
        count: number of latents, at least 1.
        latent: gives the one of a number, [C, h, w].
        seed: key of the choice.
    """
    chosen = numpy_generator(seed, "latent_statistics").choice(count, min(SAMPLE_SIZE, count), replace=False)
    batches = (
        torch.stack([latent(index) for index in batch]) for batch in in_batches(np.sort(chosen).tolist(), _BATCH)
    )
    first = next(batches)
    statistics = LatentStatistics(first.shape[1])
    statistics.update(first)
    for batch in batches:
        statistics.update(batch)
    return statistics


def write_measured(
    folder: Path,
    rule: StatisticsRule,
    records: Sequence[Mapping[str, Any]],
    count: int,
    latent: Callable[[int], Tensor],
    seed: int,
) -> dict[str, Any]:
    """Write the statistics of finished parts into a folder; returns what the index says of them.

    Args:
        records: of the parts, whose `statistics` are those of all their latents (None where a part has no row).
        count, latent, seed: as for `sampled_statistics`.
    """
    if rule == "all":
        statistics = merged_statistics(record["statistics"] for record in records if record["rows"])
    else:
        statistics = sampled_statistics(count, latent, seed)
    write_statistics(folder, statistics.mean, statistics.std)
    values = {"mean": statistics.mean.tolist(), "std": statistics.std.tolist()}
    return {"rule": rule, "values_per_channel": statistics.count, **values}
