"""What is known of an encoder before it is loaded: family, patch size, whether its files are here."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from common.errors import UserError
from networks.encoders import FAMILIES
from networks.encoders.recognition import (
    PatchSizes,
    hub_id,
    local_folder,
    model_config_of,
    resolve_family,
    resolve_patch_sizes,
)


def write_config(folder: Path, **values) -> str:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(values))
    return str(folder)


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("google/siglip2-large-patch16-512", "siglip2"),
        ("google/SigLIP2-Large-Patch16-512", "siglip2"),
        ("google/siglip2-base-patch16-naflex", "siglip2_naflex"),
        ("./models/mae/dinov2-large", "dinov2"),
        ("facebook/dinov2-with-registers-large", "dinov2"),
        ("facebook/dinov3-vitl16-pretrain-lvd1689m", "dinov3"),
        ("facebook/vit-mae-large", "mae"),
        ("openai/clip-vit-large-patch14", "clip"),
        ("Qwen/Qwen2.5-VL-3B-Instruct", "qwen"),
        ("/models/eva/siglip2-large-patch16-512", "siglip2"),
        ("eva_giant_patch14_336.clip_ft_in1k", "eva"),
        ("timm/eva02_large_patch14_clip_336.merged2b", "eva"),
        ("hf-hub:timm/EVA02_large_patch14_clip_336.merged2b", "eva"),
        ("vit_base_patch16_224.mae", "timm"),
        ("timm/vit_base_patch14_dinov2.lvd142m", "timm"),
        ("vit_large_patch16_dinov3.lvd1689m", "timm"),
        ("efficientnet_lite0", "efficientnet_lite0"),
    ],
)
def test_family_is_told_from_the_last_part_of_the_name(name: str, family: str) -> None:
    assert resolve_family(name) == family


@pytest.mark.parametrize(
    ("values", "family"),
    [
        ({"model_type": "siglip"}, "siglip2"),
        ({"model_type": "siglip2"}, "siglip2_naflex"),
        ({"model_type": "dinov2_with_registers"}, "dinov2"),
        ({"model_type": "qwen2_5_vl"}, "qwen"),
        ({"architecture": "eva_giant_patch14_336", "pretrained_cfg": {}}, "eva"),
        ({"architecture": "vit_base_patch14_dinov2", "pretrained_cfg": {}}, "timm"),
    ],
)
def test_family_is_told_from_the_models_own_config_before_its_name(values: dict, family: str, tmp_path) -> None:
    folder = write_config(tmp_path / "mae-in-name-only", **values)
    assert resolve_family(folder) == family
    assert resolve_family(f"local-dir:{folder}") == family


def test_a_model_type_of_no_family_is_named_whatever_the_folder_is_called(tmp_path) -> None:
    folder = write_config(tmp_path / "dinov3-convnext", model_type="dinov3_convnext")
    with pytest.raises(UserError, match=r"cannot be told from its model_type 'dinov3_convnext'; set encoder.family"):
        resolve_family(folder)


def test_a_folder_that_does_not_exist_is_said_to_be_missing(tmp_path) -> None:
    with pytest.raises(UserError, match=r"the folder '.*encodr' does not exist; give a model folder"):
        resolve_family(str(tmp_path / "encodr"))


def test_a_folder_with_a_damaged_config_is_told_so(tmp_path) -> None:
    folder = tmp_path / "vision"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "siglip_vi')
    with pytest.raises(UserError, match=r"cannot be told from its name, and it has no readable config\.json"):
        resolve_family(str(folder))


def test_unknown_names_ask_for_the_family() -> None:
    with pytest.raises(UserError, match=re.escape(f"set encoder.family to one of {', '.join(FAMILIES)}")):
        resolve_family("acme/vision-model")


def test_a_misspelt_family_is_answered_with_the_closest() -> None:
    with pytest.raises(UserError, match=re.escape("'siglp2' is not known. Closest: siglip2")):
        resolve_family("acme/vision-model", "siglp2")


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("google/siglip2-so400m-patch14-384", PatchSizes(14, 14)),
        ("google/siglip2-base", PatchSizes(16, 16)),
        ("facebook/dinov2-large", PatchSizes(14, 14)),
        ("eva_giant_patch14_336.clip_ft_in1k", PatchSizes(14, 14)),
        ("Qwen/Qwen2.5-VL-3B-Instruct", PatchSizes(14, 28)),
    ],
)
def test_patch_size_is_told_from_the_name_else_the_family(name: str, sizes: PatchSizes) -> None:
    assert resolve_patch_sizes(name, resolve_family(name)) == sizes


@pytest.mark.parametrize(
    ("values", "sizes"),
    [
        ({"model_type": "dinov2", "patch_size": 8}, PatchSizes(8, 8)),
        ({"model_type": "siglip", "vision_config": {"patch_size": 14}}, PatchSizes(14, 14)),
        ({"model_type": "clip", "vision_config": {"hidden_size": 8}}, PatchSizes(32, 32)),
        ({"model_type": "qwen2_5_vl", "vision_config": {"patch_size": 7, "spatial_merge_size": 3}}, PatchSizes(7, 21)),
        ({"architecture": "vit_base_patch14_dinov2"}, PatchSizes(14, 14)),
        ({"architecture": "vit_base_patch14_dinov2", "model_args": {"patch_size": 8}}, PatchSizes(8, 8)),
    ],
)
def test_patch_size_is_told_from_the_models_own_config_before_its_name(values: dict, sizes, tmp_path) -> None:
    folder = write_config(tmp_path / "model-patch99", **values)
    assert resolve_patch_sizes(folder, resolve_family(folder)) == sizes


def test_config_of_a_hub_id_is_read_from_the_local_cache(tmp_path, monkeypatch) -> None:
    import huggingface_hub

    folder = write_config(tmp_path / "snapshot", model_type="dinov2", patch_size=14)
    asked = []

    def cached(repository, filename, revision):
        asked.append((repository, filename, revision))
        return str(Path(folder) / filename)

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    assert resolve_family("acme/encoder", revision="abc") == "dinov2"
    assert resolve_patch_sizes("hf-hub:acme/encoder@v1", "dinov2") == PatchSizes(14, 14)
    assert asked == [("acme/encoder", "config.json", "abc"), ("acme/encoder", "config.json", "v1")]


def test_config_of_a_hub_id_that_is_not_cached_is_unknown() -> None:
    assert model_config_of("acme/no-such-encoder") is None


@pytest.mark.parametrize(
    ("name", "folder", "repository"),
    [
        ("./x", Path("x"), None),
        ("/a/b", Path("/a/b"), None),
        ("a/b/c", Path("a/b/c"), None),
        ("local-dir:a", Path("a"), None),
        ("google/siglip2", None, "google/siglip2"),
        ("hf-hub:timm/vit@v1", None, "timm/vit@v1"),
        ("vit_tiny_patch16_224.augreg", None, None),
    ],
)
def test_folders_hub_ids_and_bare_names_are_told_apart(name: str, folder: Path | None, repository: str | None) -> None:
    assert (local_folder(name), hub_id(name)) == (folder, repository)
