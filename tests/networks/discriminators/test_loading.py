"""Weights of the discriminators: DINO's own files, and the discriminators of reference checkpoints."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from common.errors import CheckpointError, UserError
from networks.checkpoint.names import VFMTOK_DISCRIMINATOR, discriminator_rows, to_own_name, to_reference_name
from networks.config import DiscriminatorConfig
from networks.discriminators.loading import (
    build_discriminators,
    empty_discriminators,
    load_discriminator_weights,
    read_dino,
    to_own_state,
)

DATA = Path(__file__).parents[1] / "data"
DEFAULT = json.loads((DATA / "reference_entries.json").read_text(encoding="utf-8"))["discriminator"]
ENTRIES = json.loads((DATA / "reference_discriminators.json").read_text(encoding="utf-8"))
VARIANTS = {
    "default_stage_0_1_2": ({"use_stylegan_t_discriminator": True}, 0),
    "stage_3": (
        {"use_stylegan_t_discriminator": True, "use_patchgan_discriminator": True, "get_interm_feat": True},
        0,
    ),
    "patchgan_without_intermediate_features": ({"use_patchgan_discriminator": True}, 0),
    "conditional_c_dim_1000": ({"use_stylegan_t_discriminator": True}, 1000),
}


def reference_shapes(variant: str) -> dict[str, list[int]]:
    listed = ENTRIES[variant]
    return (DEFAULT if listed["beside_the_default"] else {}) | listed["entries"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_entry_of_the_reference_has_one_own_name_and_the_same_shape(variant: str) -> None:
    options, label_dim = VARIANTS[variant]
    config = DiscriminatorConfig(**options)
    with torch.device("meta"):
        model = empty_discriminators(config, "bilinear", label_dim)
    rows = discriminator_rows(config.get_interm_feat)
    own = {name: list(value.shape) for name, value in model.state_dict().items()}
    shapes = reference_shapes(variant)
    assert {to_own_name(name, rows): shape for name, shape in shapes.items()} == own
    assert {to_reference_name(name, rows) for name in own} == set(shapes)
    assert sum(p.numel() for p in model.parameters()) == ENTRIES[variant]["parameters"]
    assert sum(p.numel() for p in model.trainable_parts().parameters()) == ENTRIES[variant]["trainable"]


def test_the_heads_of_vfmtok_have_one_name_each_here_and_there() -> None:
    config = DiscriminatorConfig(use_stylegan_t_discriminator=True, projected_kind="vfmtok", diffaug=False)
    with torch.device("meta"):
        own = empty_discriminators(config, "bilinear").trainable_parts().state_dict()
    there = {to_reference_name(name, VFMTOK_DISCRIMINATOR): name for name in own}
    assert {to_own_name(name, VFMTOK_DISCRIMINATOR): name for name in there} == {a: b for b, a in there.items()}
    spectral, norm = ("weight_orig", "bias", "weight_u", "weight_v"), ("weight", "bias")
    assert set(there) == {
        f"heads.{i}.{layer}.{leaf}"
        for i in range(5)
        for layer, leaves in (("0.0", spectral), ("0.1", norm), ("1.fn.0", spectral), ("1.fn.1", norm), ("2", spectral))
        for leaf in leaves
    }
    assert there["heads.4.1.fn.0.weight_orig"] == "projected.heads.4.residual.conv.weight_orig"


# --- DINO ----------------------------------------------------------------------------------------------------------


def constant(name: str, shape: list[int]) -> torch.Tensor:
    """A weight of full shape whose storage, also in a file, is one number that depends on its name."""
    return torch.tensor(float(sum(name.encode()) % 97) / 97).expand(shape)


def reference_discriminator(variant: str = "default_stage_0_1_2") -> dict[str, torch.Tensor]:
    return {name: constant(name, shape) for name, shape in reference_shapes(variant).items()}


def write_reference(path: Path, variant: str = "default_stage_0_1_2") -> Path:
    torch.save({"G": {}, "G_ema": {}, "D": reference_discriminator(variant)}, path)
    return path


def dino_file(path: Path) -> Path:
    prefix = "dino.model.model."
    state = {n.removeprefix(prefix): v for n, v in reference_discriminator().items() if n.startswith(prefix)}
    assert len(state) == 150
    torch.save(state, path)
    return path


def dino_config(path: Path | None, **options) -> DiscriminatorConfig:
    return DiscriminatorConfig(use_stylegan_t_discriminator=True, dino_path=path and str(path), **options)


@pytest.mark.parametrize("write", [dino_file, write_reference])
def test_dino_is_read_from_its_own_file_and_from_a_reference_checkpoint(write, tmp_path) -> None:
    model = build_discriminators(dino_config(write(tmp_path / "weights.pth")), "bilinear")
    for name, value in model.projected.backbone.vit.state_dict().items():
        assert value.flatten()[0] == constant(f"dino.model.model.{name}", [1])


def test_dino_is_read_from_safetensors(tmp_path) -> None:
    state = {"cls_token": torch.rand(1, 1, 4)}
    save_file(state, tmp_path / "model.safetensors")
    assert torch.equal(read_dino(tmp_path / "model.safetensors")["cls_token"], state["cls_token"])


def test_dino_is_found_in_the_hub_caches_and_never_downloaded(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("networks.discriminators.loading.try_to_load_from_cache", lambda *_: None)
    with pytest.raises(UserError, match=re.escape("needs DINO ViT-S/16 (timm's vit_small_patch16_224.dino)")) as error:
        build_discriminators(dino_config(None), "bilinear")
    assert "discriminator.dino_path: " in str(error.value)
    assert str(tmp_path / "checkpoints" / "dino_deitsmall16_pretrain.pth") in str(error.value)
    assert "never downloaded" in str(error.value)
    (tmp_path / "checkpoints").mkdir()
    dino_file(tmp_path / "checkpoints" / "dino_deitsmall16_pretrain.pth")
    build_discriminators(dino_config(None), "bilinear")


def test_a_file_of_another_model_is_refused(tmp_path) -> None:
    state = torch.load(dino_file(tmp_path / "dino.pth"), weights_only=True)
    state["cls_token"] = torch.zeros(1, 1, 768)
    state.pop("norm.weight")
    torch.save(state, tmp_path / "dino.pth")
    expected = (
        "not the weights of DINO ViT-S/16 (timm's vit_small_patch16_224.dino): 1 missing, e.g. norm.weight; "
        "1 of another shape, e.g. cls_token is [1, 1, 768], expected [1, 1, 384]"
    )
    with pytest.raises(CheckpointError, match=re.escape(expected)):
        build_discriminators(dino_config(tmp_path / "dino.pth"), "bilinear")


class Malicious:
    """Would create a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_malicious_dino_file_is_refused_and_not_executed(tmp_path) -> None:
    torch.save({"D": Malicious(tmp_path / "executed")}, tmp_path / "dino.pth")
    with pytest.raises(CheckpointError, match="never unpickled"):
        build_discriminators(dino_config(tmp_path / "dino.pth"), "bilinear")
    assert not (tmp_path / "executed").exists()


def test_a_file_that_is_not_there_or_holds_something_else_is_refused(tmp_path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.pth does not exist"):
        build_discriminators(dino_config(tmp_path / "nowhere.pth"), "bilinear")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match=r"list\.pth: found no dictionary of tensors"):
        read_dino(tmp_path / "list.pth")
    (tmp_path / "cut.safetensors").write_bytes(b"12")
    with pytest.raises(CheckpointError, match=r"cut\.safetensors: damaged, or not a safetensors file"):
        read_dino(tmp_path / "cut.safetensors")


# --- discriminators ------------------------------------------------------------------------------------------------


def test_all_230_entries_of_a_reference_checkpoint_are_loaded_strictly(tmp_path) -> None:
    path = write_reference(tmp_path / "snapshot.pth")
    model = build_discriminators(dino_config(path), "bilinear")
    state = reference_discriminator()
    assert len(state) == 230
    load_discriminator_weights(model, to_own_state(state, "file"), "file")
    rows = discriminator_rows(keep_features=False)
    found = {to_reference_name(name, rows): value for name, value in model.state_dict().items()}
    assert all(torch.equal(found[name], value) for name, value in state.items())


def tiny(**options):
    config = DiscriminatorConfig(use_stylegan_t_discriminator=True, backbone="random_tiny", **options)
    return build_discriminators(config, "bilinear")


def test_own_weights_come_back_without_the_frozen_backbone() -> None:
    options = {"use_patchgan_discriminator": True, "get_interm_feat": True}
    model, other = tiny(**options), tiny(**options)
    state = model.trainable_parts().state_dict()
    assert not any("backbone" in name for name in state)
    load_discriminator_weights(other, state, "file")
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in state.items())


@pytest.mark.parametrize("keep_features", [False, True])
def test_both_layouts_of_the_patchgan_give_the_same_weights(keep_features: bool) -> None:
    model = tiny(use_patchgan_discriminator=True)
    state = model.trainable_parts().state_dict()
    rows = discriminator_rows(keep_features)
    there = {to_reference_name(name, rows): value for name, value in state.items()}
    assert to_own_state(there, "file").keys() == state.keys()


def test_a_file_without_patchgan_leaves_it_as_it_is_and_says_so(caplog) -> None:
    model = tiny(use_patchgan_discriminator=True)
    before = {name: value.clone() for name, value in model.patchgan.state_dict().items()}
    state = tiny().trainable_parts().state_dict()
    load_discriminator_weights(model, state, "stage_2.pth")
    assert "stage_2.pth: holds no PatchGAN; the one here starts from its initial weights." in caplog.text
    assert all(torch.equal(value, before[name]) for name, value in model.patchgan.state_dict().items())
    assert torch.equal(model.projected.heads[0].logits.weight_orig, state["projected.heads.0.logits.weight_orig"])


def test_anything_else_that_is_missing_left_over_or_misshapen_is_named() -> None:
    model = tiny(use_patchgan_discriminator=True)
    state = model.trainable_parts().state_dict()

    def without(name: str):
        return {key: value for key, value in state.items() if key != name}

    for changed, message in (
        (
            without("patchgan.scales.0.layers.0.conv.bias"),
            r"1 missing, e\.g\. patchgan\.scales\.0\.layers\.0\.conv\.bias",
        ),
        (without("projected.heads.4.logits.weight_v"), r"1 missing, e\.g\. projected\.heads\.4\.logits\.weight_v"),
        (state | {"patchgan.extra": torch.zeros(1)}, r"1 unexpected, e\.g\. patchgan\.extra"),
        (state | {"projected.heads.0.logits.bias": torch.zeros(2)}, r"logits\.bias is \[2\], expected \[1\]"),
    ):
        with pytest.raises(CheckpointError, match=rf"file: the weights do not fit .*{message}"):
            load_discriminator_weights(model, changed, "file")
    with pytest.raises(CheckpointError, match=r"48 unexpected, e\.g\. patchgan"):
        load_discriminator_weights(tiny(), state, "file")


def test_heads_of_another_frozen_backbone_are_refused() -> None:
    model = tiny()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    state["projected.backbone.vit.cls_token"] += 1
    with pytest.raises(CheckpointError, match="trained on another frozen backbone than the one here"):
        load_discriminator_weights(model, state, "file")


def test_the_heads_of_a_vfmtok_file_are_loaded_strictly() -> None:
    model, other = (tiny(projected_kind="vfmtok", diffaug=False) for _ in range(2))
    own = model.trainable_parts().state_dict()
    file = {to_reference_name(name, VFMTOK_DISCRIMINATOR): value for name, value in own.items()}
    load_discriminator_weights(other, to_own_state(file, "file", VFMTOK_DISCRIMINATOR), "file")
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in own.items())
    file.pop("heads.4.2.bias")
    with pytest.raises(CheckpointError, match=r"1 missing, e\.g\. projected\.heads\.4\.logits\.bias"):
        load_discriminator_weights(other, to_own_state(file, "file", VFMTOK_DISCRIMINATOR), "file")
    with pytest.raises(CheckpointError, match=r"'heads\.0\.cls\.bias' is not one of the reference's discriminators"):
        to_own_state({"heads.0.cls.bias": torch.zeros(1)}, "file", VFMTOK_DISCRIMINATOR)


def test_an_unknown_entry_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"'heads\.0\.mystery' is not one of the reference's discriminators"):
        to_own_state({"heads.0.mystery": torch.zeros(1)}, "file")
