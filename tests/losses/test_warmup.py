"""The warm-up of the discriminators: when it ends, what waits, and that it resumes exactly."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from losses.warmup import DiscriminatorWarmup


def started_at(warmup: DiscriminatorWarmup, pixel_loss=lambda i: 0.05, adversarial_loss=lambda i: 0.05, steps=1200):
    """{discriminator: first step at whose end it is on}."""
    found = {}
    for i in range(steps):
        found |= dict.fromkeys(warmup.update(pixel_loss(i), adversarial_loss(i)), i)
    return found


@pytest.mark.parametrize("name", ["stylegan_t", "patchgan"])
def test_a_loss_that_is_low_and_constant_from_the_start_has_settled_after_550_steps(name: str) -> None:
    warmup = DiscriminatorWarmup(stylegan_t=name == "stylegan_t", patchgan=name == "patchgan")
    assert started_at(warmup) == {name: 549}
    assert warmup.waiting == frozenset()


@pytest.mark.parametrize(
    ("name", "drift"),
    [("stylegan_t", 0.011 / 50), ("patchgan", 0.055 / 50)],
)
def test_a_loss_that_still_falls_has_not_settled(name: str, drift: float) -> None:
    """The means of two halves of 50 values differ by 50 times the fall per step."""
    warmup = DiscriminatorWarmup(stylegan_t=name == "stylegan_t", patchgan=name == "patchgan")
    assert started_at(warmup, *[lambda i: -drift * i] * 2) == {}
    calmer = DiscriminatorWarmup(stylegan_t=name == "stylegan_t", patchgan=name == "patchgan")
    assert started_at(calmer, *[lambda i: -0.8 * drift * i] * 2) == {name: 549}


def test_a_loss_that_is_not_low_never_settles() -> None:
    warmup = DiscriminatorWarmup(stylegan_t=True, patchgan=True)
    assert started_at(warmup, lambda i: 0.1001, lambda i: 0.1001) == {}
    assert warmup.waiting == {"stylegan_t", "matching_aware", "patchgan", "feature_matching"}
    assert not warmup.freezes_first_half


def test_a_jump_starts_the_count_of_calm_judgements_again() -> None:
    warmup = DiscriminatorWarmup(stylegan_t=True, patchgan=False)
    assert started_at(warmup, lambda i: 0.05 if i < 500 else 0.09) == {"stylegan_t": 1049}


def test_steps_without_a_value_are_not_counted() -> None:
    warmup = DiscriminatorWarmup(stylegan_t=False, patchgan=True)
    assert started_at(warmup, adversarial_loss=lambda i: None if i < 100 else 0.05) == {"patchgan": 649}


def test_only_a_patchgan_that_has_waited_freezes_the_first_half_of_the_decoder() -> None:
    waited = DiscriminatorWarmup(stylegan_t=False, patchgan=True)
    assert not waited.freezes_first_half
    started_at(waited)
    assert waited.freezes_first_half
    never = DiscriminatorWarmup(stylegan_t=True, patchgan=False)
    started_at(never)
    assert not never.freezes_first_half


@settings(max_examples=20, deadline=None)
@given(
    stop=st.integers(0, 1199),
    seed=st.integers(0, 10**6),
    held=st.sampled_from([(True, False), (False, True), (True, True)]),
)
def test_a_stopped_warmup_goes_on_as_if_it_had_not_been_stopped(stop: int, seed: int, held) -> None:
    import random

    rng = random.Random(seed)
    values = [(0.3 * 0.995**i + rng.gauss(0, 0.01), 0.1 + rng.gauss(0, 0.2) - i / 5000) for i in range(1200)]

    def run(warmup, part):
        return [(i, warmup.update(*values[i])) for i in part]

    whole, first = DiscriminatorWarmup(*held), DiscriminatorWarmup(*held)
    events = run(whole, range(1200))
    early = run(first, range(stop))
    second = DiscriminatorWarmup(*held)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert early + run(second, range(stop, 1200)) == events
    assert second.state_dict() == whole.state_dict()
    assert second.freezes_first_half == whole.freezes_first_half
