"""Rectangular images and other sizes than the one that a model is built for."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from common.errors import ShapeError
from configs.schema import load_config
from networks.config import TokenizerConfig
from networks.encoders.loading import load_encoder
from networks.vfm_vae import VFMVAETokenizer
from tests.tiny import fill_weights, tiny_values
from tests.trainer.conftest import merged

# The published grids (256 pixels, latent 16 x 16, branches that shrink it by 4) with few and narrow layers.
PUBLISHED_GRIDS = {
    "encoder.scale_factor": 1.0,
    "latent.resolution_compression_factor": 16,
    "latent.how_to_compress": "conv",
    "decoder.how_to_decompress": "conv",
    "decoder.num_blocks": 6,
    "decoder.channel_max": 16,
    "decoder.concat_z_block_indices": [0, 1, 2, 3],
    "decoder.concat_z_mapped_dims": [16, 16, 16, 16],
    "decoder.attn_block_indices": [0],
    "decoder.attn_depths": [1],
}


@pytest.fixture(scope="module")
def tokenizer(tiny_encoder, tmp_path_factory) -> VFMVAETokenizer:
    """A tokenizer for 256 pixels."""
    folder = tmp_path_factory.mktemp("unused")
    values = merged(tiny_values(tiny_encoder, folder, folder), PUBLISHED_GRIDS)
    config = TokenizerConfig(img_resolution=256, **{name: values[name] for name in ("encoder", "latent", "decoder")})
    model = VFMVAETokenizer(config, load_encoder(config.encoder)).eval()
    fill_weights(model)
    return model


@pytest.mark.parametrize(("height", "width"), [(512, 384), (384, 512), (64, 128)])
def test_a_model_for_256_pixels_takes_rectangles_of_other_sizes(tokenizer, height: int, width: int) -> None:
    with torch.no_grad():
        output = tokenizer(torch.rand(1, 3, height, width), torch.Generator().manual_seed(0))
    assert output.latent.z.shape == (1, 4, height // 16, width // 16)
    assert output.decoded.reconstruction.shape == (1, 3, height, width)
    assert {side: tuple(image.shape[2:]) for side, image in output.decoded.pyramid.items()} == {
        256 // shrink: (height // shrink, width // shrink) for shrink in (2, 4, 8, 16, 32)
    }
    assert output.decoded.reconstruction.isfinite().all()


def test_moments_of_a_rectangle_equal_those_computed_on_maps(tokenizer) -> None:
    """Features by the library's own forward pass, then 1x1 convolutions and space to depth, without tokens."""
    images = torch.rand(2, 3, 128, 192)
    backbone, compression = tokenizer.encoder.backbone, tokenizer.compression
    with torch.no_grad():
        whole = backbone(images * 2 - 1, interpolate_pos_encoding=True, output_hidden_states=True)
        states = [whole.hidden_states[0], whole.hidden_states[2], whole.last_hidden_state]
        maps = [state.transpose(1, 2).unflatten(2, (16, 24)) for state in states]
        fused = [F.pixel_unshuffle(conv(x), 2) for conv, x in zip(compression.projections, maps, strict=True)]
        expected = compression.head(torch.cat(fused, dim=1))
        moments = tokenizer.encode(images).posterior.moments
    assert moments.shape == (2, 8, 8, 12)
    assert (moments - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize(
    ("height", "width", "nearest"), [(512, 300, "512 x 256"), (300, 512, "256 x 512"), (272, 40, "256 x 64")]
)
def test_a_size_that_does_not_fit_is_refused_before_the_encoder_runs(
    tokenizer, height: int, width: int, nearest: str
) -> None:
    message = (
        f"images of {height} x {width} pixels (height x width) do not fit this tokenizer; expected both sides to be "
        f"multiples of 64. Crop or resize them, e.g. to {nearest}."
    )
    calls = []
    hook = tokenizer.encoder.register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises(ShapeError, match=f"^{re.escape(message)}$"):
        tokenizer.encode(torch.rand(1, 3, height, width))
    hook.remove()
    assert calls == []


DINOV2 = {"encoder.vfm_name": "facebook/dinov2-large"}
QWEN = {"encoder.vfm_name": "Qwen/Qwen2.5-VL-3B-Instruct", "encoder.patch_from_layers": [0, 16, 32]}


FEW_BRANCHES = {"decoder.concat_z_block_indices": [0, 1]}


@pytest.mark.parametrize(
    ("changes", "multiple"),
    [
        ({}, 64),
        ({**DINOV2, "encoder.scale_factor": 1.75}, 64),
        ({**DINOV2, "encoder.scale_factor": 0.875}, 64),
        ({"decoder.num_blocks": 5, **FEW_BRANCHES}, 32),
        ({"decoder.num_blocks": 4, **FEW_BRANCHES}, 16),
        ({"latent.resolution_compression_factor": 32}, 64),
        ({**QWEN, "encoder.scale_factor": 1.75}, 64),
        ({**QWEN, "encoder.scale_factor": 0.875, "decoder.num_blocks": 4, **FEW_BRANCHES}, 32),
    ],
)
def test_multiple_of_the_published_model_and_its_variants(changes: dict, multiple: int) -> None:
    published = load_config("configs/vfm_vae_f16d32_siglip2_stage_0_strong_alignment.yaml").config.tokenizer()
    config = TokenizerConfig(**merged(published.model_dump(), changes))
    assert config.image_multiple() == multiple
    encoder, latent_side = config.encoder, config.latent_side()
    unshuffle = [side // latent_side for side in encoder.token_sides(256)]
    for side in range(multiple, 1025, multiple):
        assert side * encoder.scale_factor % encoder.pixel_multiple() == 0
        factor = config.latent.resolution_compression_factor
        assert encoder.token_sides(side) == [side // factor * u for u in unshuffle]


@given(
    patch=st.sampled_from([8, 14, 16, 28]),
    unshuffle=st.integers(1, 4),
    factor=st.sampled_from([8, 14, 16, 32]),
    multiple=st.integers(1, 100),
)
def test_whole_latent_grids_have_whole_token_grids(patch: int, unshuffle: int, factor: int, multiple: int) -> None:
    """scale_factor = u * patch / factor, so H * scale_factor is a multiple of u patches where H is one of `factor`."""
    scale_factor = unshuffle * patch / factor
    resized = F.interpolate(torch.zeros(1, 1, factor * multiple, 1), scale_factor=(scale_factor, 1.0))
    assert resized.shape[2] == unshuffle * patch * multiple
