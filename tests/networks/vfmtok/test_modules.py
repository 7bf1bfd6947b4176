"""The modules of VFMTok, compared with independent computations."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from networks.interfaces import Features
from networks.vfmtok.config import DecodeTransformerConfig, RegionEncoderConfig
from networks.vfmtok.decode_transformer import DecodeTransformer
from networks.vfmtok.deformable_attention import sample_levels
from networks.vfmtok.region_encoder import RegionEncoder, reference_points
from networks.vfmtok.resize import resize_to_model


def by_corners(value, locations, weights, grids):
    """`sample_levels` by index: the four corners of every point, those outside of the map counting as 0."""
    batch, queries, heads, _, points, _ = locations.shape
    output = torch.zeros(batch, queries, heads, value.shape[-1], dtype=torch.float64)
    start = 0
    for level, (height, width) in enumerate(grids):
        level_map = value[:, start : start + height * width].double()
        start += height * width
        for b in range(batch):
            for q in range(queries):
                for m in range(heads):
                    for p in range(points):
                        x = locations[b, q, m, level, p, 0].item() * width - 0.5
                        y = locations[b, q, m, level, p, 1].item() * height - 0.5
                        for column in (math.floor(x), math.floor(x) + 1):
                            for row in (math.floor(y), math.floor(y) + 1):
                                if 0 <= column < width and 0 <= row < height:
                                    share = (1 - abs(x - column)) * (1 - abs(y - row))
                                    share *= weights[b, q, m, level, p].item()
                                    output[b, q, m] += share * level_map[b, row * width + column, m]
    return output.flatten(2)


@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=3),
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(0, 2**32),
)
@settings(max_examples=20, deadline=None)
def test_sampling_equals_that_of_single_corners_inside_and_outside_of_the_maps(grids, points, heads, seed):
    generator = torch.Generator().manual_seed(seed)
    positions = sum(h * w for h, w in grids)
    value = torch.randn(2, positions, heads, 3, generator=generator)
    locations = 2 * torch.rand(2, 3, heads, len(grids), points, 2, generator=generator) - 0.5
    weights = torch.rand(2, 3, heads, len(grids), points, generator=generator)
    found = sample_levels(value, locations, weights, grids)
    assert torch.allclose(found.double(), by_corners(value, locations, weights, grids), atol=1e-5)


def test_sampling_equals_the_one_of_the_transformers_library():
    from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention

    generator = torch.Generator().manual_seed(0)
    grids = [(5, 3), (2, 4)]
    value = torch.randn(2, 23, 4, 6, generator=generator)
    locations = 1.5 * torch.rand(2, 7, 4, 2, 3, 2, generator=generator) - 0.25
    weights = torch.rand(2, 7, 4, 2, 3, generator=generator)
    expected = MultiScaleDeformableAttention()(
        value, torch.tensor(grids), grids, torch.tensor([0, 15]), locations, weights, 64
    )
    assert torch.allclose(sample_levels(value, locations, weights, grids), expected, atol=1e-6)


def test_reference_points_are_centres_in_raster_order():
    assert reference_points(4).tolist() == [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]


def features(batch: int = 2) -> Features:
    generator = torch.Generator().manual_seed(1)
    levels = [torch.randn(batch, 9, 12, generator=generator), torch.randn(batch, 4, 12, generator=generator)]
    return Features(levels, [(3, 3), (2, 2)])


def region_encoder(**changes) -> RegionEncoder:
    options = {"width": 16, "depth": 2, "heads": 4, "mlp_dim": 24, "num_points": 2, "num_tokens": 9, **changes}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return RegionEncoder(RegionEncoderConfig(**options), [12, 12])


@torch.no_grad()
def test_a_region_token_depends_on_no_later_query():
    encoder = region_encoder()
    before = encoder(features())
    encoder.positions[:, 5] += 1.0
    after = encoder(features())
    assert torch.equal(before[:, :5], after[:, :5])
    assert (before[:, 5] - after[:, 5]).abs().max() > 1e-3


def test_layers_start_alike_or_each_by_itself():
    for init, expected in (("copies", True), ("independent", False)):
        first, second = region_encoder(init=init).layers
        alike = torch.equal(first.expand.weight, second.expand.weight)
        assert alike is expected
        one, two = region_encoder(init=init).projections
        assert torch.equal(one.first.weight, two.first.weight) is expected


@torch.no_grad()
def test_what_the_transformer_spreads_depends_on_every_region_token():
    config = DecodeTransformerConfig(depth=2, heads=4, mlp_dim=48)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = DecodeTransformer(config, 16, num_tokens=4, feature_side=3, feature_width=5).eval()
    regions = torch.randn(1, 4, 16, generator=torch.Generator().manual_seed(0))
    pixels, predicted = model(regions, 2), model.predict_features(regions)
    assert pixels.shape == (1, 16, 2, 2) and predicted.shape == (1, 9, 5)
    for token in range(4):
        changed = regions.clone()
        changed[:, token] *= -1.0  # a shift of all channels would not pass the norm
        assert (model(changed, 2) - pixels).abs().amin() > 0
        assert (model.predict_features(changed) - predicted).abs().amin() > 0


def test_position_embeddings_of_the_feature_grid_are_taken_as_they_are():
    model = DecodeTransformer(DecodeTransformerConfig(depth=1, heads=2, mlp_dim=8), 8, 4, 3, 5)
    assert model.positions_for(3) is model.positions
    assert model.positions_for(5).shape == (1, 26, 8)


@pytest.mark.parametrize("size", [(24, 24), (40, 20), (10, 30)])
def test_the_published_resize_keeps_constants_and_the_range(size):
    flat = torch.full((1, 3, *size), 0.25)
    assert torch.allclose(resize_to_model(flat, 24), torch.full((1, 3, 24, 24), 0.25), atol=1e-6)
    noise = torch.randint(0, 2, (1, 3, *size), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    assert resize_to_model(noise, 24).abs().max() <= 1
