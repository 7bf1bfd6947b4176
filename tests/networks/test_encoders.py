"""Families of encoders: loaded whole from a folder, equal to their library, run no further than needed."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from common.errors import ShapeError, UserError
from common.registry import import_object
from evaluation.cost import count_flops
from networks.checkpoint import to_own_name, to_reference_name
from networks.config import EncoderConfig
from networks.encoders import FAMILIES
from networks.encoders.base import VisionEncoder
from networks.encoders.loading import empty_encoder, load_encoder
from networks.encoders.transformers_vit import TransformersViT
from tests.networks.tiny_encoders import DEPTH, TINY, TinyEncoder

LAYERS = [0, 2, -2, -1]
HEIGHT, WIDTH = 40, 24  # no square, and no size that a tiny model was made for


@pytest.fixture(params=TINY, scope="session")
def name(request) -> str:
    return request.param


@pytest.fixture(scope="session")
def loaded(name: str, folders) -> VisionEncoder:
    """The model of a family, loaded from its folder."""
    return load_encoder(config_of(name, folders[name]))


def config_of(name: str, folder: Path, layers: list[int] = LAYERS, scale_factor: float = 1.0) -> EncoderConfig:
    return EncoderConfig(
        vfm_name=str(folder),
        scale_factor=scale_factor,
        patch_from_layers=layers,
        patch_in_dimensions=TINY[name].widths(layers),
    )


@torch.no_grad()
def test_layers_and_pooled_output_equal_those_of_the_library(name: str, loaded) -> None:
    tiny: TinyEncoder = TINY[name]
    images = torch.rand(2, 3, HEIGHT, WIDTH)
    expected = tiny.expected(loaded.backbone, loaded.preprocess(images))
    features = loaded(images)
    coarse = tiny.patch * tiny.merge
    patches, merged = (HEIGHT // tiny.patch, WIDTH // tiny.patch), (HEIGHT // coarse, WIDTH // coarse)
    assert features.grids == [patches, patches, patches, merged]
    for layer, found in zip(LAYERS, features.levels, strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected.levels[layer], atol=2e-6, rtol=2e-6)
    torch.testing.assert_close(loaded.pooled(images), expected.pooled, atol=2e-6, rtol=2e-6)


def test_family_is_told_from_the_models_own_config(name: str, folders) -> None:
    assert config_of(name, folders[name]).resolved_family() == (TINY[name].family or name)


def test_weights_are_frozen_fp32_and_stay_in_eval_mode(loaded) -> None:
    assert not any(module.training for module in loaded.train().modules())
    assert {(p.dtype, p.requires_grad) for p in loaded.parameters()} == {(torch.float32, False)}


def test_a_file_that_is_cut_off_is_refused(name: str, folders, tmp_path) -> None:
    folder = shutil.copytree(folders[name], tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="could not be loaded"):
        load_encoder(config_of(name, folder))


def test_a_model_that_lacks_a_weight_is_refused(name: str, folders, tmp_path) -> None:
    folder = shutil.copytree(folders[name], tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    lost = next(key for key in weights if TINY[name].lost in key)
    save_file({k: v for k, v in weights.items() if k != lost}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 weights of \w+|Missing key\(s\) in state_dict"):
        load_encoder(config_of(name, folder))


def test_features_do_not_depend_on_who_else_is_in_the_batch(loaded) -> None:
    images = torch.rand(3, 3, HEIGHT, WIDTH)
    together, alone = loaded(images), [loaded(image[None]) for image in images]
    for number, level in enumerate(together.levels):
        torch.testing.assert_close(level, torch.cat([f.levels[number] for f in alone]), atol=2e-6, rtol=1e-5)


def test_an_image_that_does_not_fit_the_patches_is_refused_with_the_multiple(name: str, loaded) -> None:
    multiple = TINY[name].patch * TINY[name].merge
    with pytest.raises(ShapeError, match=f"the encoder sees 40 x 28 pixels, expected multiples of .* {multiple};"):
        loaded(torch.rand(1, 3, 40, 28))
    with pytest.raises(ShapeError, match="the encoder sees 40 x 28 pixels"):
        loaded.pooled(torch.rand(1, 3, 40, 28))


@pytest.mark.parametrize("layer", [DEPTH + 1, -DEPTH - 3])
def test_a_layer_that_does_not_exist_is_refused(layer: int, loaded) -> None:
    with pytest.raises(UserError, match=f"layer {layer} does not exist; this encoder has 3 blocks, so layers 0 to 3"):
        type(loaded)(loaded.backbone, [layer], 1.0)


def test_encoder_runs_no_further_than_the_last_layer_used(loaded) -> None:
    ran = []
    hooks = [
        block.register_forward_hook(lambda *_, number=number: ran.append(number))
        for number, block in enumerate(loaded.blocks)
    ]
    type(loaded)(loaded.backbone, [0, 2], 1.0)(torch.rand(1, 3, HEIGHT, WIDTH))
    for hook in hooks:
        hook.remove()
    assert ran == [0, 1]


def test_size_and_cost_are_known_without_loading_weights(name: str, loaded, folders) -> None:
    with torch.device("meta"):
        empty = empty_encoder(config_of(name, folders[name]))
    shapes = {key: value.shape for key, value in loaded.state_dict().items()}
    assert {key: value.shape for key, value in empty.state_dict().items()} == shapes
    assert count_flops(lambda: empty.to("meta")(torch.empty(2, 3, HEIGHT, WIDTH, device="meta"))) > 0


def test_names_of_all_weights_translate_both_ways(name: str, loaded) -> None:
    family = TINY[name].family or name
    names = [f"encoder.{key}" for key in loaded.state_dict()]
    references = [to_reference_name(key, family=family) for key in names]
    assert len(set(references)) == len(names)
    assert [to_own_name(key, family=family) for key in references] == names


def test_wrong_widths_of_a_merged_layer_are_refused_with_the_right_ones(folders) -> None:
    config = config_of("qwen", folders["qwen"]).model_copy(update={"patch_in_dimensions": [32, 32, 32, 32]})
    with pytest.raises(UserError, match=re.escape("have [32, 32, 32, 24] channels; put these numbers there")):
        load_encoder(config)


def test_a_name_that_suggests_another_patch_size_is_refused(folders, monkeypatch) -> None:
    from transformers import PreTrainedConfig, SiglipVisionModel

    model = SiglipVisionModel.from_pretrained(folders["siglip2"])
    monkeypatch.setattr(PreTrainedConfig, "get_config_dict", lambda *a, **k: ({"model_type": "siglip"}, {}))
    monkeypatch.setattr(SiglipVisionModel, "from_pretrained", lambda *a, **k: (model, {"missing_keys": set()}))
    config = EncoderConfig(
        vfm_name="acme/siglip2-patch16", scale_factor=1.0, patch_from_layers=[-1], patch_in_dimensions=[32]
    )
    with pytest.raises(UserError, match=r"suggests patches of \[16\] pixels, but the model has \[8\]"):
        load_encoder(config)


# --- the equivariance regularisation's input branch, and other sizes -------------------------------------------------


@pytest.mark.parametrize(
    ("name", "mode", "antialias"),
    [
        ("siglip2", "bilinear", True),
        ("dinov2", "bicubic", True),
        ("qwen", "bicubic", True),
        ("eva", "bilinear", False),
        ("mae", "bilinear", False),
    ],
)
def test_images_are_resized_as_published(name: str, mode: str, antialias: bool, folders) -> None:
    encoder = load_encoder(config_of(name, folders[name], scale_factor=1.75))
    images = torch.rand(1, 3, 64, 32)
    small = torch.nn.functional.interpolate(images, scale_factor=0.5, mode=mode, antialias=antialias)
    scaled = torch.nn.functional.interpolate(small, scale_factor=1.75, mode=mode)
    found = encoder.preprocess(images, input_scale=0.5) * encoder.pixel_std + encoder.pixel_mean
    torch.testing.assert_close(found, scaled)
    assert tuple(found.shape[2:]) == (56, 28)


# --- hub names: which loader is called with what ---------------------------------------------------------------------


class Called(Exception):
    """Stops a load at the point where a library would go to the hub."""


@pytest.mark.parametrize(
    ("vfm_name", "model_type", "class_name"),
    [
        ("google/siglip2-large-patch16-512", "siglip", "SiglipVisionModel"),
        ("google/siglip2-base-patch16-naflex", "siglip2", "Siglip2VisionModel"),
        ("facebook/dinov2-with-registers-large", "dinov2_with_registers", "Dinov2WithRegistersModel"),
        ("facebook/dinov3-vitl16-pretrain-lvd1689m", "dinov3_vit", "DINOv3ViTModel"),
        ("facebook/vit-mae-large", "vit_mae", "ViTMAEModel"),
        ("openai/clip-vit-large-patch14", "clip", "CLIPVisionModel"),
        ("Qwen/Qwen2.5-VL-3B-Instruct", "qwen2_5_vl", "Qwen2_5_VisionTransformerPretrainedModel"),
    ],
)
def test_transformers_class_follows_the_hub_config(vfm_name, model_type, class_name, monkeypatch) -> None:
    import transformers

    def called(*args, **options):
        raise Called(*args, options)

    seen = []
    monkeypatch.setattr(
        transformers.PreTrainedConfig,
        "get_config_dict",
        lambda source, revision: (seen.append((source, revision)), ({"model_type": model_type}, {}))[1],
    )
    monkeypatch.setattr(getattr(transformers, class_name), "from_pretrained", called)
    config = EncoderConfig(
        vfm_name=vfm_name, revision="abc", scale_factor=1.0, patch_from_layers=[-1], patch_in_dimensions=[1024]
    )
    with pytest.raises(Called) as call:
        load_encoder(config)
    source, options = call.value.args
    assert seen == [(vfm_name, "abc")]
    assert (source, options["revision"], options["dtype"]) == (vfm_name, "abc", torch.float32)
    assert options["output_loading_info"] is True


@pytest.mark.parametrize(
    ("vfm_name", "revision", "source"),
    [
        ("eva_giant_patch14_336.clip_ft_in1k", None, "eva_giant_patch14_336.clip_ft_in1k"),
        ("vit_large_patch16_dinov3.lvd1689m", None, "vit_large_patch16_dinov3.lvd1689m"),
        ("timm/vit_base_patch16_224.mae", None, "hf-hub:timm/vit_base_patch16_224.mae"),
        (
            "hf-hub:timm/eva02_large_patch14_clip_336.merged2b",
            "abc",
            "hf-hub:timm/eva02_large_patch14_clip_336.merged2b@abc",
        ),
    ],
)
def test_timm_is_called_with_its_own_form_of_a_name(vfm_name, revision, source, monkeypatch) -> None:
    import timm

    def called(*args, **options):
        raise Called(*args, options)

    monkeypatch.setattr(timm, "create_model", called)
    config = EncoderConfig(
        vfm_name=vfm_name, revision=revision, scale_factor=1.0, patch_from_layers=[-1], patch_in_dimensions=[1024]
    )
    with pytest.raises(Called) as call:
        load_encoder(config)
    assert call.value.args == (source, {"pretrained": True, "dynamic_img_size": True, "dynamic_img_pad": False})


def test_timms_folder_form_loads(folders) -> None:
    config = config_of("timm", folders["timm"]).model_copy(update={"vfm_name": f"local-dir:{folders['timm']}"})
    assert config.resolved_family() == "timm"
    assert load_encoder(config).depth == DEPTH


# --- refusals --------------------------------------------------------------------------------------------------------


def attempt(vfm_name: str, **keys) -> None:
    load_encoder(
        EncoderConfig(vfm_name=vfm_name, scale_factor=1.0, patch_from_layers=[-1], patch_in_dimensions=[32], **keys)
    )


@pytest.mark.parametrize(
    ("vfm_name", "folder"),
    [
        ("./nowhere/siglip2-x", "nowhere/siglip2-x"),
        ("./nowhere/vit_tiny", "nowhere/vit_tiny"),
        ("local-dir:/nowhere/eva", "/nowhere/eva"),
    ],
)
def test_a_folder_that_does_not_exist_is_no_hub_id(vfm_name: str, folder: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"the folder '{folder}' does not exist")):
        attempt(vfm_name)


def test_a_model_of_another_family_is_refused_by_its_model_type(folders) -> None:
    with pytest.raises(UserError, match="has the model_type 'siglip_vision_model', expected dinov2 or"):
        attempt(str(folders["siglip2"]), family="dinov2")


@pytest.mark.parametrize("vfm_name", ["resnet18", "beit_base_patch16_224", "vit_tiny_r_s16_p8_224"])
def test_models_of_timm_that_are_no_plain_transformer_are_refused(vfm_name: str, monkeypatch) -> None:
    import timm

    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **options: create(name, **options))
    with torch.device("meta"), pytest.raises(UserError, match=f"'{vfm_name}' is no plain vision transformer"):
        attempt(vfm_name, family="timm")


def test_a_timm_folder_whose_weights_timm_would_not_check_is_refused(folders, tmp_path) -> None:
    folder = shutil.copytree(folders["timm"], tmp_path / "model")
    values = json.loads((folder / "config.json").read_text())
    values["model_args"]["num_classes"] = 0
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="states 5 classes in one place and 0 in another"):
        attempt(str(folder))


def test_a_name_that_timm_does_not_know_is_refused() -> None:
    with pytest.raises(UserError, match=r"could not be loaded by timm \(Unknown model \(vit_unheard_of\)\)"):
        attempt("vit_unheard_of")


def test_a_revision_of_a_bare_timm_name_is_refused() -> None:
    with pytest.raises(UserError, match=r"encoder.revision: found 'abc', .* hf-hub:timm/vit_tiny_patch16_224"):
        attempt("vit_tiny_patch16_224", revision="abc")


def test_a_siglip_without_its_head_has_no_pooled_output(folders, tmp_path) -> None:
    from transformers import SiglipVisionModel

    model = SiglipVisionModel.from_pretrained(folders["siglip2"], vision_use_head=False)
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="saved without its pooling head"):
        load_encoder(config_of("siglip2", tmp_path)).pooled(torch.rand(1, 3, 32, 32))


# --- the registry ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_registry_and_class_of_a_family_agree(family: str) -> None:
    encoder_class = import_object(FAMILIES[family].target)
    if issubclass(encoder_class, TransformersViT):
        assert tuple(dict(encoder_class.model_classes)) == FAMILIES[family].model_types
    else:
        assert FAMILIES[family].model_types == ()


# --- EfficientNet-Lite0 ----------------------------------------------------------------------------------------------


def test_efficientnet_brings_all_stages_to_stride_16() -> None:
    config = EncoderConfig(
        vfm_name="efficientnet_lite0",
        scale_factor=1.0,
        patch_from_layers=[0, 1, 2, 3, 4, -1],
        patch_in_dimensions=[1024, 384, 160, 80, 112, 112],
    )
    encoder = load_encoder(config)
    images = torch.rand(2, 3, 64, 48)
    features = encoder(images)
    assert features.grids == [(4, 3)] * 6
    assert [level.shape[-1] for level in features.levels] == config.patch_in_dimensions
    last = features.levels[-1]
    assert torch.allclose(last.mean(-1), torch.zeros(2, 12), atol=1e-5)
    torch.testing.assert_close(encoder.pooled(images), last.mean(1))
    with pytest.raises(ShapeError, match="the encoder sees 64 x 40 pixels, expected multiples of its patch size 16"):
        encoder(images[..., :40])


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
