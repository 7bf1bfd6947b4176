"""What holds for all inputs: transforms, rearrangements, the posterior, and encoding in batches."""

from __future__ import annotations

import functools
import random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from networks.compression import map_to_tokens, tokens_to_map, unshuffle_tokens
from networks.config import TokenizerConfig
from networks.encoders.loading import load_encoder
from networks.equivariance import EquivarianceTransform, draw_transform
from networks.latent import DiagonalGaussian
from networks.vfm_vae import VFMVAETokenizer
from tests.tiny import fill_weights, tiny_values

sides = st.integers(1, 9)
seeds = st.integers(0, 2**32)


def made_up(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# --- equivariance ----------------------------------------------------------------------------------------------


@given(seed=seeds, height=sides, width=sides, turns=st.lists(st.integers(0, 3), max_size=4))
def test_quarter_turns_that_add_up_to_four_are_the_identity(
    seed: int, height: int, width: int, turns: list[int]
) -> None:
    x = made_up(seed, 2, 3, height, width)
    transforms = [EquivarianceTransform(quarter_turns=turn) for turn in [*turns, -sum(turns) % 4]]
    turned = functools.reduce(lambda z, transform: transform.apply_to_latent(z), transforms, x)
    assert torch.equal(turned, x)
    turned = functools.reduce(lambda image, t: t.apply_to_target(image, "bilinear"), transforms, x)
    assert torch.equal(turned, x)


@given(seed=seeds, height=sides, width=sides)
def test_four_single_quarter_turns_are_the_identity_and_fewer_are_not(seed: int, height: int, width: int) -> None:
    once = EquivarianceTransform(quarter_turns=1).apply_to_latent
    x = made_up(seed, 1, 1, height + 1, width + 1)
    turned = [x]
    for _ in range(4):
        turned.append(once(turned[-1]))
    assert torch.equal(turned[4], x)
    for fewer in turned[1:4]:
        assert not torch.equal(fewer, x)


@given(seed=seeds, p_latent=st.floats(0, 1), p_input_scale=st.floats(0, 1))
def test_a_drawn_transform_changes_latent_and_target_alike(seed: int, p_latent: float, p_input_scale: float) -> None:
    transform = draw_transform(random.Random(seed), p_latent, p_input_scale)
    latent, target = torch.zeros(1, 1, 8, 12), torch.zeros(1, 3, 32, 48)
    scaled = transform.apply_to_target(target, "bilinear").shape
    if transform.on_input:
        assert transform.quarter_turns == 0
        assert transform.apply_to_latent(latent).shape == latent.shape
        assert scaled == (1, 3, int(32 * transform.input_scale), int(48 * transform.input_scale))
    else:
        assert transform.input_scale == 1
        small = transform.apply_to_latent(latent).shape
        assert scaled == (1, 3, 4 * small[2], 4 * small[3])


# --- tokens and maps -------------------------------------------------------------------------------------------


@given(seed=seeds, height=sides, width=sides, channels=st.integers(1, 5))
def test_tokens_and_maps_invert_each_other(seed: int, height: int, width: int, channels: int) -> None:
    x = made_up(seed, 2, channels, height, width)
    tokens = map_to_tokens(x)
    assert torch.equal(tokens_to_map(tokens, (height, width)), x)
    assert torch.equal(tokens[:, -1], x[:, :, -1, -1])


@given(
    seed=seeds,
    height=st.integers(1, 4),
    width=st.integers(1, 4),
    channels=st.integers(1, 3),
    factor=st.integers(1, 4),
)
def test_shuffle_inverts_unshuffle(seed: int, height: int, width: int, channels: int, factor: int) -> None:
    grid = (height * factor, width * factor)
    tokens = made_up(seed, 2, grid[0] * grid[1], channels)
    unshuffled, small_grid = unshuffle_tokens(tokens, grid, factor)
    assert small_grid == (height, width)
    assert unshuffled.shape == (2, height * width, channels * factor**2)
    restored = map_to_tokens(F.pixel_shuffle(tokens_to_map(unshuffled, small_grid), factor))
    assert torch.equal(restored, tokens)


# --- posterior -------------------------------------------------------------------------------------------------


def posterior_of(mean: list[float], logvar: list[float]) -> DiagonalGaussian:
    return DiagonalGaussian(torch.tensor([mean + logvar], dtype=torch.float64)[:, :, None, None])


finite = st.floats(-1e3, 1e3)
away_from_0 = st.one_of(st.floats(1e-3, 20), st.floats(-30, -1e-3))


@given(st.lists(st.tuples(finite, finite), min_size=1, max_size=8))
def test_kl_divergence_is_never_negative(elements: list[tuple[float, float]]) -> None:
    mean, logvar = zip(*elements, strict=True)
    assert posterior_of(list(mean), list(logvar)).kl().item() >= 0


@given(st.lists(st.tuples(finite, finite), max_size=4), away_from_0, st.booleans())
def test_kl_divergence_is_positive_away_from_the_prior(
    elements: list[tuple[float, float]], value: float, in_mean: bool
) -> None:
    elements = [*elements, (value, 0.0) if in_mean else (0.0, value)]
    mean, logvar = zip(*elements, strict=True)
    assert posterior_of(list(mean), list(logvar)).kl().item() > 0


@given(st.integers(1, 8))
def test_kl_divergence_of_the_prior_is_zero(channels: int) -> None:
    assert posterior_of([0.0] * channels, [0.0] * channels).kl().item() == 0


# --- encoding in batches ---------------------------------------------------------------------------------------

IMAGES = made_up(0, 6, 3, 64, 64).sigmoid()


@pytest.fixture(scope="module")
def tokenizer(tiny_encoder, tmp_path_factory) -> VFMVAETokenizer:
    folder = tmp_path_factory.mktemp("unused")
    values = tiny_values(tiny_encoder, folder, folder)
    config = TokenizerConfig(img_resolution=64, **{name: values[name] for name in ("encoder", "latent", "decoder")})
    model = VFMVAETokenizer(config, load_encoder(config.encoder)).eval()
    fill_weights(model)
    return model


@pytest.fixture(scope="module")
def moments_of_items(tokenizer) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([tokenizer.encode(image[None]).posterior.moments for image in IMAGES])


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(members=st.lists(st.integers(0, len(IMAGES) - 1), min_size=1, max_size=6))
def test_moments_of_a_batch_equal_those_of_its_items(tokenizer, moments_of_items, members: list[int]) -> None:
    """Whoever else is in the batch, in whatever order, and however often."""
    with torch.no_grad():
        together = tokenizer.encode(IMAGES[members]).posterior.moments
    expected = moments_of_items[members]
    assert (together - expected).abs().max() <= 1e-5 * expected.abs().max()


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=seeds, others=st.integers(1, 3))
def test_decoding_does_not_depend_on_who_else_is_in_the_batch(tokenizer, seed: int, others: int) -> None:
    z = made_up(seed, 1 + others, 4, 8, 8)
    with torch.no_grad():
        together = tokenizer.decode(z).reconstruction[:1]
        alone = tokenizer.decode(z[:1]).reconstruction
    assert (together - alone).abs().max() <= 1e-5 * max(1, alone.abs().max())
