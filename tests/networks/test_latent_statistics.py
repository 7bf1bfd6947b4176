"""Streaming statistics of latents."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UserError
from networks.latent_statistics import LatentStatistics


def made_up(count: int) -> torch.Tensor:
    """Latents whose channels differ in mean and spread, far from 0 so that naive sums of squares would cancel."""
    z = torch.randn(count, 3, 4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return z * torch.tensor([0.1, 1.0, 7.0]).view(3, 1, 1) + torch.tensor([1e4, 0.0, -5.0]).view(3, 1, 1)


def test_statistics_equal_those_of_all_latents_at_once() -> None:
    z = made_up(20)
    statistics = LatentStatistics(3)
    for batch in z.split(7):
        statistics.update(batch)
    assert statistics.count == 20 * 8
    assert torch.allclose(statistics.mean, z.mean(dim=(0, 2, 3)), rtol=1e-12)
    assert torch.allclose(statistics.std, z.std(dim=(0, 2, 3)), rtol=1e-9)
    assert statistics.scaling_factor == pytest.approx(1 / z.std(correction=0).item(), rel=1e-9)


@given(st.lists(st.integers(0, 10), min_size=1, max_size=3))
def test_the_split_into_batches_and_processes_does_not_matter(cuts: list[int]) -> None:
    z = made_up(10)
    whole, merged = LatentStatistics(3), LatentStatistics(3)
    whole.update(z)
    bounds = [0, *sorted(cuts), 10]
    for start, stop in itertools.pairwise(bounds):
        part = LatentStatistics(3)
        if stop > start:
            part.update(z[start:stop])
        merged.merge(part)
    assert merged.count == whole.count
    assert torch.allclose(merged.mean, whole.mean, rtol=1e-12)
    assert torch.allclose(merged.std, whole.std, rtol=1e-9)


def test_statistics_survive_json_to_the_last_bit() -> None:
    statistics = LatentStatistics(3)
    statistics.update(made_up(7))
    restored = LatentStatistics.from_values(json.loads(json.dumps(statistics.to_values())))
    assert restored.count == statistics.count
    assert torch.equal(restored.mean, statistics.mean) and torch.equal(restored.std, statistics.std)


@pytest.mark.parametrize("z", [torch.zeros(4, 3, 2, 2), torch.full((4, 3, 2, 2), torch.nan), None])
def test_statistics_that_cannot_scale_a_latent_are_refused(z: torch.Tensor | None) -> None:
    statistics = LatentStatistics(3)
    if z is not None:
        statistics.update(z)
    with pytest.raises(UserError, match="expected finite ones above 0; use more images"):
        _ = statistics.scaling_factor
