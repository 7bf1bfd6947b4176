"""Families of encoders: recognised, loaded, and run no further than needed."""

from __future__ import annotations

import json
import re

import pytest
import torch

from common.errors import UserError
from networks.config import EncoderConfig
from networks.encoders import resolve_family, resolve_patch_size
from networks.encoders.dinov2 import DINOv2Encoder
from networks.encoders.loading import load_encoder
from networks.encoders.siglip2 import SigLIP2Encoder


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("google/siglip2-large-patch16-512", "siglip2"),
        ("./models/mae/dinov2-large", "dinov2"),
        ("efficientnet_lite0", "efficientnet_lite0"),
    ],
)
def test_family_is_told_from_the_last_part_of_the_name(name: str, family: str) -> None:
    assert resolve_family(name) == family


def test_family_is_told_from_the_models_own_config_before_its_name(tmp_path) -> None:
    folder = tmp_path / "siglip2-in-name-only"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "dinov2", "patch_size": 14}))
    assert resolve_family(str(folder)) == "dinov2"
    assert resolve_patch_size(str(folder), "dinov2") == 14


def test_unknown_names_ask_for_the_family() -> None:
    with pytest.raises(UserError, match=re.escape("set encoder.family to one of siglip2, dinov2, efficientnet_lite0")):
        resolve_family("acme/vision-model")


def test_a_misspelt_family_is_answered_with_the_closest() -> None:
    with pytest.raises(UserError, match=re.escape("'siglp2' is not known. Closest: siglip2")):
        resolve_family("acme/vision-model", "siglp2")


def test_families_to_come_are_refused_by_name() -> None:
    with pytest.raises(UserError, match="family 'qwen', which is not built yet"):
        resolve_family("Qwen/Qwen2.5-VL-3B-Instruct")


def test_patch_size_is_told_from_the_name() -> None:
    assert resolve_patch_size("google/siglip2-large-patch14-384", "siglip2") == 14


def test_a_folder_that_does_not_exist_is_no_hub_id() -> None:
    config = EncoderConfig(
        vfm_name="./nowhere/siglip2-x",
        scale_factor=1.0,
        patch_from_layers=[-1],
        patch_in_dimensions=[8],
    )
    with pytest.raises(UserError, match=re.escape("the folder './nowhere/siglip2-x' does not exist")):
        load_encoder(config)


def dinov2(**options) -> torch.nn.Module:
    from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    shape = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "mlp_ratio": 2, "image_size": 28}
    torch.manual_seed(0)
    if "num_register_tokens" in options:
        return Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**shape, patch_size=14, **options))
    return Dinov2Model(Dinov2Config(**shape, patch_size=14))


@pytest.mark.parametrize("options", [{}, {"num_register_tokens": 4}])
def test_dinov2_layers_equal_those_of_a_whole_forward_pass(options: dict) -> None:
    backbone = dinov2(**options)
    encoder = DINOv2Encoder(backbone, [0, 2, -2, -1], scale_factor=1.0)
    images = torch.rand(2, 3, 42, 28)
    features = encoder(images)
    whole = backbone(encoder.preprocess(images), output_hidden_states=True)
    prefix = 1 + options.get("num_register_tokens", 0)
    expected = [whole.hidden_states[0], whole.hidden_states[2], whole.hidden_states[3], whole.last_hidden_state]
    assert features.grids == [(3, 2)] * 4
    for found, state in zip(features.levels, expected, strict=True):
        assert torch.allclose(found, state[:, prefix:], atol=1e-6)


def test_encoder_runs_no_further_than_the_last_layer_used() -> None:
    from transformers import SiglipVisionConfig, SiglipVisionModel

    backbone = SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=4,
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
        )
    )
    calls = []
    for number, block in enumerate(backbone.encoder.layers):
        block.register_forward_hook(lambda *_, number=number: calls.append(number))
    SigLIP2Encoder(backbone, [0, 2], scale_factor=1.0)(torch.rand(1, 3, 32, 32))
    assert calls == [0, 1]


def test_efficientnet_brings_all_stages_to_stride_16() -> None:
    config = EncoderConfig(
        vfm_name="efficientnet_lite0",
        scale_factor=1.0,
        patch_from_layers=[0, 1, 2, 3, 4, -1],
        patch_in_dimensions=[1024, 384, 160, 80, 112, 112],
    )
    features = load_encoder(config)(torch.rand(2, 3, 64, 48))
    assert features.grids == [(4, 3)] * 6
    assert [level.shape[-1] for level in features.levels] == config.patch_in_dimensions
    last = features.levels[-1]
    assert torch.allclose(last.mean(-1), torch.zeros(2, 12), atol=1e-5)


def test_packaged_efficientnet_knows_a_cat() -> None:
    """The weights arrive where they belong: scikit-image's cat is one of ImageNet's cats."""
    import numpy as np
    from skimage.data import chelsea

    from common.value_range import uint8_to_unit, unit_to_signed
    from networks.encoders.efficientnet_lite0 import load_efficientnet_lite0

    image = torch.from_numpy(np.ascontiguousarray(chelsea()[:, 75:375])).movedim(-1, 0)[None]
    with torch.no_grad():
        pixels = resize_to_224(unit_to_signed(uint8_to_unit(image)))
        best = load_efficientnet_lite0()(pixels).argmax().item()
    assert best in range(281, 286)  # tabby, tiger cat, Persian, Siamese, Egyptian cat


def resize_to_224(pixels: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.interpolate(pixels, size=(224, 224), mode="bilinear", antialias=True)
