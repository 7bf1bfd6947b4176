"""Every option of the tokenizer builds, runs, trains, and has a reference name for each weight."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from networks.checkpoint import to_own_name, to_reference_name
from networks.conditioning import Labels
from networks.config import TOKENIZER_RELATIONS, TokenizerConfig
from networks.encoders.loading import empty_encoder, load_encoder
from networks.vfm_vae import VFMVAETokenizer
from tests.tiny import tiny_values
from tests.trainer.conftest import merged
from trainer.config import VFMVAETrainingConfig
from trainer.freeze import select_trainable

NO_CONVNEXT = {"decoder.use_convnext": False, "decoder.channel_base": 8192}  # 32 channels in every block
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
    "summed images": {"decoder.use_multiscale_output": False},
    "no ConvNeXt": {**NO_CONVNEXT},
    "no ConvNeXt, summed images": {**NO_CONVNEXT, "decoder.use_multiscale_output": False},
    "no ConvNeXt, no clamp": {**NO_CONVNEXT, "decoder.conv_clamp": None},
    "class indices": {"decoder.conditional": True, "decoder.label_type": "cls2id", "decoder.label_dim": 3},
    "class texts": {"decoder.conditional": True},
    "captions": {"decoder.conditional": True, "decoder.label_type": "text"},
    "cross-attention": {"decoder.conditional": True, "decoder.use_cross_attn": True},
    "cross-attention alone": {
        "decoder.conditional": True,
        "decoder.use_cross_attn": True,
        "decoder.use_self_attn": False,
    },
    "no ConvNeXt, class texts": {
        "decoder.conditional": True,
        "decoder.use_cross_attn": True,
        **NO_CONVNEXT,
    },
}


def variant_config(changes: dict, encoder: Path) -> TokenizerConfig:
    """The tiny tokenizer with changes."""
    values = merged(tiny_values(encoder, Path("no data"), Path("no run")), changes)
    sections = {name: values[name] for name in ("encoder", "latent", "decoder")}
    return TokenizerConfig(img_resolution=64, alignment_head=True, **sections)


def labels_for(config: TokenizerConfig) -> Labels:
    """Labels of two images."""
    if config.decoder.reads_classes:
        return torch.eye(config.decoder.label_dim)[:2]
    return ["a red fox", "crane"] if config.decoder.reads_texts else None


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_variant_builds_runs_and_trains(changes: dict, tiny_text_encoder) -> None:
    config = variant_config(changes, tiny_text_encoder)
    assert not [relation.check(config) for relation in TOKENIZER_RELATIONS if relation.check(config)]
    model = VFMVAETokenizer(config, load_encoder(config.encoder, config.decoder.reads_texts))
    output = model(torch.rand(2, 3, 64, 64), torch.Generator().manual_seed(0), c=labels_for(config))
    images = [output.decoded.reconstruction, *output.decoded.pyramid.values()]
    assert images[0].shape == (2, 3, 64, 64)
    assert list(output.decoded.pyramid) == config.decoder.block_resolutions(64)[:-1]
    (sum(image.square().mean() for image in images) + output.latent.projected.square().mean()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.trainable_parts().parameters())
    names = [name for name in model.state_dict() if not name.startswith("encoder.text_encoder.")]
    references = [to_reference_name(name, family="siglip2") for name in names]
    assert len(set(references)) == len(names)
    assert [to_own_name(name, family="siglip2") for name in references] == names


@pytest.mark.parametrize("variant", ["no noise", "no ConvNeXt", "class indices", "cross-attention"])
def test_every_train_mode_selects_the_same_parts_of_a_variant(variant: str, tiny_text_encoder) -> None:
    config = variant_config(VARIANTS[variant], tiny_text_encoder)
    with torch.device("meta"):
        model = VFMVAETokenizer(config, empty_encoder(config.encoder, config.decoder.reads_texts))
    for mode in ("train_all", "train_decoder", "train_the_second_half_decoder"):
        select_trainable(model, VFMVAETrainingConfig(train_mode=mode))
        for name, parameter in model.named_parameters():
            part, *rest = name.split(".")
            block = int(rest[1]) if rest[0] in ("blocks", "latent_branches") else None
            wanted = {
                "train_all": part != "encoder",
                "train_decoder": part == "decoder",
                "train_the_second_half_decoder": block is not None and model.decoder.resolutions[block] > 32,
            }[mode]
            assert parameter.requires_grad == wanted, name
