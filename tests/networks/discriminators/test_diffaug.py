"""Differentiable augmentation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from networks.discriminators.diffaug import OPERATIONS, Color, Cutout, Rescale, Translation, augment

PUBLISHED = ("color", "translation", "cutout")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("policy", [PUBLISHED, *((name,) for name in OPERATIONS)], ids=" ".join)
def test_draws_follow_the_generator_and_gradients_reach_the_images(policy: tuple[str, ...]) -> None:
    images = torch.randn(4, 3, 24, 16, requires_grad=True)
    once, again, other = (augment(images, policy, seeded(seed)) for seed in (0, 0, 1))
    assert once.shape == images.shape
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
    (gradient,) = torch.autograd.grad(once.square().sum(), images)
    assert all(gradient.abs().flatten(1).sum(1) > 0)


def test_colours_at_one_half_change_nothing() -> None:
    images, half = torch.rand(2, 3, 8, 8), torch.full((2,), 0.5)
    assert torch.allclose(Color(half, half, half).apply(images), images, atol=1e-6)


def test_every_image_has_colours_of_its_own() -> None:
    images = torch.rand(1, 3, 8, 8).expand(8, -1, -1, -1)
    augmented = Color.draw(images, seeded(0)).apply(images)
    assert len({image.mean().item() for image in augmented}) == 8


@settings(max_examples=30, deadline=None)
@given(st.integers(-3, 3), st.integers(-3, 3))
def test_translation_moves_whole_pixels_and_fills_with_zero(rows: int, columns: int) -> None:
    image = torch.rand(1, 1, 10, 12) + 1
    found = Translation(torch.tensor([rows]), torch.tensor([columns])).apply(image)
    padded = torch.nn.functional.pad(image, (3, 3, 3, 3))
    assert torch.equal(found, padded[:, :, 3 + rows : 13 + rows, 3 + columns : 15 + columns])


def test_translation_reaches_an_eighth_of_each_side_both_ways() -> None:
    drawn = Translation.draw(torch.zeros(2000, 1, 16, 32), seeded(0))
    assert [drawn.rows.min(), drawn.rows.max()] == [-2, 2]
    assert [drawn.columns.min(), drawn.columns.max()] == [-4, 4]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 20), st.integers(0, 10))
def test_cutout_removes_a_box_that_collapses_at_the_border(row: int, column: int) -> None:
    image = torch.ones(1, 1, 20, 10)  # boxes of 4 rows and 2 columns
    found = Cutout(torch.tensor([row]), torch.tensor([column])).apply(image)[0, 0]
    rows = {min(max(row - 2 + k, 0), 19) for k in range(4)}
    columns = {min(max(column - 1 + k, 0), 9) for k in range(2)}
    expected = torch.ones(20, 10)
    for i in rows:
        for j in columns:
            expected[i, j] = 0
    assert torch.equal(found, expected)


@pytest.mark.parametrize("u", [0.0, 0.3, 0.5, 0.77, 0.999])
def test_rescaling_keeps_the_size_and_the_middle(u: float) -> None:
    images = torch.ones(1, 1, 21, 30)
    found = Rescale(u).apply(images)
    assert found.shape == images.shape
    assert found[0, 0, 10, 15] == 1.0
    covered = found.mean().item()
    assert covered == pytest.approx(min(1.0, (0.8 + 0.4 * u)) ** 2, abs=0.08)
