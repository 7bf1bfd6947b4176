"""Every option of the continuous tokenizer builds, runs, trains, and has a reference name for each weight."""

from __future__ import annotations

import pytest
import torch

from networks.checkpoint import to_own_name, to_reference_name
from networks.config import TokenizerConfig
from networks.encoders.loading import load_encoder
from networks.vfm_vae import VFMVAETokenizer
from tests.tiny import tiny_values
from tests.trainer.conftest import merged

VARIANTS = {
    "convolution adapters": {"latent.how_to_compress": "conv", "decoder.how_to_decompress": "conv"},
    "two-layer projections": {"latent.attnproj_quant_layers": 2, "decoder.attnproj_post_quant_layers": 2},
    "pooling branches": {"decoder.how_to_process_concat_z": "pooling"},
    "branches of natural width": {"decoder.concat_z_mapped_dims": []},
    "latent into block 0 alone": {"decoder.concat_z_block_indices": [0], "decoder.activation_for_concat_z": "silu"},
    "no blur": {"decoder.use_gaussian_blur": False},
    "no attention": {"decoder.attn_block_indices": [], "decoder.attn_depths": []},
    "attention switched off": {"decoder.use_self_attn": False},
    "no noise": {"decoder.legacy": False},
    "five blocks": {"decoder.num_blocks": 5},
    "pooled to 2 x 2": {"decoder.z_pooled_resolution": 2},
    "two layers per group": {"decoder.add_additional_convnext": False, "decoder.num_res_blocks": 2},
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_variant_builds_runs_and_trains(changes: dict, tiny_encoder, tiny_data, tmp_path) -> None:
    values = merged(tiny_values(tiny_encoder, tiny_data, tmp_path), changes)
    config = TokenizerConfig(
        img_resolution=64, alignment_head=True, **{name: values[name] for name in ("encoder", "latent", "decoder")}
    )
    model = VFMVAETokenizer(config, load_encoder(config.encoder))
    output = model(torch.rand(2, 3, 64, 64), torch.Generator().manual_seed(0))
    images = [output.decoded.reconstruction, *output.decoded.pyramid.values()]
    assert images[0].shape == (2, 3, 64, 64)
    assert len(images) == config.decoder.num_blocks
    (sum(image.square().mean() for image in images) + output.latent.projected.square().mean()).backward()
    assert all(p.grad is not None for p in model.trainable_parts().parameters())
    for name in model.state_dict():
        assert to_own_name(to_reference_name(name, family="siglip2"), family="siglip2") == name
