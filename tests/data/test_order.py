"""The order of samples: complete, reproducible, and the same however a step is split."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.order import SampleOrder, micro_batch_positions, seeded_permutation

sizes_strategy = st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(sum)


@given(sizes_strategy, st.integers(1, 15), st.integers(0, 2**32), st.integers(0, 3))
def test_every_epoch_has_every_sample_once(sizes, window, seed, epoch):
    order = SampleOrder(sizes, window, seed)
    count = sum(sizes)
    assert len(order) == count
    found = [order.sample_at(position) for position in range(epoch * count, (epoch + 1) * count)]
    assert sorted(found) == list(range(count))


@given(sizes_strategy, st.integers(1, 4), st.integers(0, 100), st.lists(st.integers(0, 500), max_size=20))
def test_order_depends_on_the_position_alone(sizes, window, seed, positions):
    order = SampleOrder(sizes, window, seed)
    fresh = [SampleOrder(sizes, window, seed).sample_at(position) for position in positions]
    assert [order.sample_at(position) for position in positions] == fresh
    assert [pickle.loads(pickle.dumps(order)).sample_at(position) for position in positions] == fresh


def test_samples_mix_within_windows_of_shards_only():
    order = SampleOrder([10] * 6, window_shards=2, seed=0)
    shards = np.array([order.sample_at(position) // 10 for position in range(60)]).reshape(3, 20)
    assert [len(set(window)) for window in shards.tolist()] == [2, 2, 2]
    assert any(np.diff(shards[0]).tolist())


def test_epochs_and_seeds_differ():
    def keys(seed: int, epoch: int) -> list[int]:
        order = SampleOrder([25] * 4, 2, seed)
        return [order.sample_at(position) for position in range(epoch * 100, epoch * 100 + 100)]

    assert keys(0, 0) != keys(0, 1) and keys(0, 0) != keys(1, 0) and keys(0, 1) == keys(0, 1)


def test_order_is_the_one_that_runs_were_started_with():
    order = SampleOrder([3, 4, 5], window_shards=2, seed=42)
    assert seeded_permutation(6, 42, "sample order", 0, 0).tolist() == [3, 5, 2, 1, 4, 0]
    assert [order.sample_at(position) for position in range(14)] == [3, 5, 2, 1, 4, 6, 0, 10, 8, 9, 7, 11, 2, 8]


def test_a_million_samples_are_cheap():
    order = SampleOrder([1252] * 1024, 16, 0)
    found = {order.sample_at(position) for position in range(0, len(order), 1000)}
    assert len(found) == -(-len(order) // 1000)


@pytest.mark.parametrize(("world_size", "accumulate"), [(1, 4), (2, 2), (4, 1)])
def test_a_step_sees_the_same_positions_however_it_is_split(world_size, accumulate):
    seen = [
        position
        for rank in range(world_size)
        for a in range(accumulate)
        for position in micro_batch_positions(5, rank, a, global_batch=12, micro_batch=3, accumulate=accumulate)
    ]
    assert seen == list(range(60, 72))
