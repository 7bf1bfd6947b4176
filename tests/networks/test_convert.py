"""Reference checkpoints in and out: every entry accounted for, every bit kept, every bad file named."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
import types
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from common.checkpoint_folder import write_checkpoint
from common.config import Source
from common.errors import CheckpointError, UserError
from configs.schema import check, load_config
from networks.checkpoint import load_tokenizer, origin_of, to_own_name, to_reference_name
from networks.checkpoint.convert import folder_to_reference, reference_to_folder
from networks.checkpoint.origin import UNKNOWN_LICENCE, Origin
from networks.checkpoint.reference import (
    ReferenceCheckpoint,
    read_reference,
    snapshot_nimg,
    to_own_state,
    write_reference,
)
from networks.config import DiscriminatorConfig, TokenizerConfig
from networks.encoders.loading import empty_encoder, load_encoder
from networks.vfm_vae import VFMVAETokenizer
from tests.tiny import tiny_values, write_config

ROOT = Path(__file__).parents[2]
DATA = Path(__file__).parent / "data"
ENTRIES = json.loads((DATA / "reference_entries.json").read_text(encoding="utf-8"))
DISCRIMINATORS = json.loads((DATA / "reference_discriminators.json").read_text(encoding="utf-8"))
STAGES = sorted((ROOT / "configs").glob("vfm_vae_f16d32_siglip2_stage_*.yaml"))
OPTIONS = {"class_name": "training.data_wds.WdsWrapper", "resolution": 256, "label_type": "cls2text", "path": None}


def published(stage: int, vfm_name: Path) -> TokenizerConfig:
    """The tokenizer of a published stage with the noise maps of the released weights."""
    values = load_config(STAGES[stage]).config.tokenizer().model_dump(mode="json")
    values["encoder"]["vfm_name"] = str(vfm_name)
    values["decoder"]["legacy"] = True
    return TokenizerConfig(**values)


def shrunken(stage: int, vfm_name: Path) -> TokenizerConfig:
    """The same with few channels: equal names, small tensors."""
    values = published(stage, vfm_name).model_dump(mode="json")
    values["encoder"]["patch_in_dimensions"] = [32, 32, 32]
    values["latent"] |= {"patch_out_dimensions": [8, 8, 8], "z_dimension": 4}
    values["decoder"] |= {"z_dim_for_mapping_mlp_output": 16, "channel_base": 4096, "channel_max": 32}
    values["decoder"]["concat_z_mapped_dims"] = [32, 32, 32, 32]
    return TokenizerConfig(**values)


def shapes_by_reference_name(model: torch.nn.Module) -> dict[str, list[int]]:
    return {to_reference_name(name, family="siglip2"): list(v.shape) for name, v in model.state_dict().items()}


@pytest.fixture(scope="module")
def large_encoder(tmp_path_factory) -> Path:
    """What tells the size of SigLIP2-Large at 512 pixels: its configuration, without weights."""
    from transformers import SiglipVisionConfig

    folder = tmp_path_factory.mktemp("large") / "siglip2-large-patch16-512"
    SiglipVisionConfig(**ENTRIES["encoder"]).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def small_encoder(tmp_path_factory) -> Path:
    """A SigLIP of as many layers as SigLIP2-Large, but narrow."""
    from transformers import SiglipVisionConfig, SiglipVisionModel

    folder = tmp_path_factory.mktemp("small") / "siglip2-small-patch16-64"
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "image_size": 64}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        SiglipVisionModel(SiglipVisionConfig(**{**ENTRIES["encoder"], **sizes})).save_pretrained(folder)
    return folder


def random_like(shapes: dict[str, list[int]], seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def random_contents(config: TokenizerConfig) -> ReferenceCheckpoint:
    """A checkpoint of a model as the reference would have it: three different state dicts, one frozen encoder."""
    with torch.device("meta"):
        model = VFMVAETokenizer(config, None, noise=True)
    shapes = shapes_by_reference_name(model)
    encoder = {
        to_reference_name(f"encoder.{name}", family="siglip2"): value
        for name, value in load_encoder(config.encoder).state_dict().items()
    }
    discriminator = random_like({name: [1 + len(shape), 2] for name, shape in ENTRIES["discriminator"].items()}, 2)
    return ReferenceCheckpoint(
        random_like(shapes, 0) | encoder, random_like(shapes, 1) | encoder, discriminator, OPTIONS
    )


@pytest.fixture(scope="module")
def config(tiny_encoder, tiny_data, tmp_path_factory) -> TokenizerConfig:
    """The tiny tokenizer of these tests, with noise maps."""
    values = tiny_values(tiny_encoder, tiny_data, tmp_path_factory.mktemp("run"))
    return check(Source("tiny.yaml", values)).config.tokenizer()


@pytest.fixture(scope="module")
def contents(config) -> ReferenceCheckpoint:
    return random_contents(config)


@pytest.fixture
def pth(contents, tmp_path) -> Path:
    return save(contents, tmp_path / "network-snapshot-00044000.pth")


def save(contents: ReferenceCheckpoint, path: Path) -> Path:
    """Written by the reference's own call."""
    state = {"G": contents.raw, "D": contents.discriminator, "G_ema": contents.average, "training_set_kwargs": OPTIONS}
    torch.save(state, path)
    return path


def assert_equal_states(found, expected) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), name


# --- names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [0, 3])
def test_every_entry_of_the_published_model_is_one_weight_here_and_back(stage, large_encoder):
    config = published(stage, large_encoder)
    with torch.device("meta"):
        model = VFMVAETokenizer(config, empty_encoder(config.encoder))
    expected = ENTRIES["generator"] | (ENTRIES["optional"] if stage < 2 else {})
    assert len(ENTRIES["generator"]) == 1182
    assert shapes_by_reference_name(model) == expected
    own = [to_own_name(name, family="siglip2") for name in expected]
    assert len(set(own)) == len(own)
    assert set(own) == set(model.state_dict())
    assert all(value.dtype == torch.float32 for value in model.state_dict().values())


# --- there and back ------------------------------------------------------------------------------------------------


def parts(contents: ReferenceCheckpoint) -> tuple[int, int]:
    """Entries of the tokenizer without its encoder, and of the encoder."""
    encoder = sum(name.startswith("vfm_encoder.") for name in contents.average)
    return len(contents.average) - encoder, encoder


def round_trip(contents: ReferenceCheckpoint, config: TokenizerConfig, folder: Path, include_encoder: bool) -> None:
    pth = save(contents, folder / "network-snapshot-00044000.pth")
    there = reference_to_folder(pth, folder / "model", config, include_encoder=include_encoder)
    trained, encoder = parts(contents)
    assert (there.weights, there.encoder, there.discriminator) == (trained, encoder * include_encoder, 230)
    assert there.has_noise
    assert there.has_raw
    back = folder_to_reference(folder / "model", folder / "back")
    assert back.path == folder / "back" / "network-snapshot-00044000.pth"
    found = torch.load(back.path, weights_only=True)
    assert set(found) == {"G", "D", "G_ema", "training_set_kwargs", "derived_from"}
    assert_equal_states(found["G"], contents.raw)
    assert_equal_states(found["G_ema"], contents.average)
    assert_equal_states(found["D"], contents.discriminator)
    assert found["training_set_kwargs"] == OPTIONS


def test_all_1182_and_230_entries_come_back_bit_equal(small_encoder, tmp_path):
    config = shrunken(3, small_encoder)
    contents = random_contents(config)
    assert contents.average.keys() == contents.raw.keys() == ENTRIES["generator"].keys()
    assert contents.discriminator.keys() == ENTRIES["discriminator"].keys()
    round_trip(contents, config, tmp_path, include_encoder=False)


def test_a_copied_encoder_comes_back_bit_equal(contents, config, tmp_path):
    round_trip(contents, config, tmp_path, include_encoder=True)


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_a_converted_folder_is_the_same_model_as_its_file(pth, contents, config, tmp_path, weights):
    reference_to_folder(pth, tmp_path / "model", config)
    from_folder, from_file = (
        load_tokenizer(tmp_path / "model", weights=weights),
        load_tokenizer(pth, config, "cpu", weights),
    )
    assert_equal_states(from_folder.state_dict(), from_file.state_dict())
    expected = contents.average if weights == "ema" else contents.raw
    assert_equal_states(
        {to_reference_name(name, family="siglip2"): v for name, v in from_folder.state_dict().items()}, expected
    )


def test_a_file_without_encoder_is_written_on_request_and_read_again(pth, contents, config, tmp_path):
    reference_to_folder(pth, tmp_path / "model", config)
    back = folder_to_reference(tmp_path / "model", tmp_path / "small.pth", include_encoder=False)
    assert back.encoder == 0
    assert len(torch.load(tmp_path / "small.pth", weights_only=True)["G"]) == parts(contents)[0]
    again = reference_to_folder(tmp_path / "small.pth", tmp_path / "again", config)
    assert again.encoder == 0
    assert_equal_states(load_tokenizer(tmp_path / "again").state_dict(), load_tokenizer(pth, config).state_dict())


def test_the_encoder_is_stored_once_in_a_written_file(pth, config, tmp_path):
    reference_to_folder(pth, tmp_path / "model", config)
    folder_to_reference(tmp_path / "model", tmp_path / "back.pth")
    state = torch.load(tmp_path / "back.pth", weights_only=True, mmap=True)
    name = next(name for name in state["G"] if name.startswith("vfm_encoder."))
    assert state["G"][name].data_ptr() == state["G_ema"][name].data_ptr()


def test_a_file_that_is_only_a_state_dict_is_read_as_the_average(contents, config, tmp_path):
    torch.save(contents.average, tmp_path / "generator.pth")
    converted = reference_to_folder(tmp_path / "generator.pth", tmp_path / "model", config)
    assert not converted.has_raw
    for weights in ("ema", "raw"):
        state = load_tokenizer(tmp_path / "model", weights=weights).state_dict()
        assert_equal_states(
            {to_reference_name(name, family="siglip2"): value for name, value in state.items()}, contents.average
        )
    with pytest.raises(CheckpointError, match=r"does not know how many images .* give a file name, e\.g\. .*\.pth"):
        folder_to_reference(tmp_path / "model", tmp_path / "somewhere")
    folder_to_reference(tmp_path / "model", tmp_path / "back.pth")
    found = torch.load(tmp_path / "back.pth", weights_only=True)
    assert found["D"] == {}
    assert found["training_set_kwargs"] == {"resolution": 64, "conditional": False, "label_type": "cls2text"}
    assert_equal_states(found["G"], contents.average)


def test_weights_without_noise_maps_stay_without(contents, config, tmp_path):
    plain = {name: v for name, v in contents.average.items() if not name.endswith((".noise_const", ".noise_strength"))}
    torch.save({"G_ema": plain}, tmp_path / "plain.pth")
    with pytest.raises(CheckpointError, match=r"decoder\.legacy is true, but the file has no noise maps"):
        reference_to_folder(tmp_path / "plain.pth", tmp_path / "model", config)
    open_config = config.model_copy(update={"decoder": config.decoder.model_copy(update={"legacy": None})})
    assert not reference_to_folder(tmp_path / "plain.pth", tmp_path / "model", open_config).has_noise
    folder_to_reference(tmp_path / "model", tmp_path / "back.pth")
    assert_equal_states(torch.load(tmp_path / "back.pth", weights_only=True)["G_ema"], plain)


@pytest.mark.parametrize(
    ("name", "nimg"),
    [
        ("network-snapshot-00044000.pth", 44_000_000),
        ("network-snapshot-044000_legacy.pth", 44_000_000),
        ("a.pth", None),
    ],
)
def test_images_seen_are_told_from_the_files_name(name, nimg):
    assert snapshot_nimg(Path("somewhere") / name) == nimg


def write_run(folder: Path, contents, config, **options) -> int:
    """A run's checkpoint with discriminators of these options; returns the number of their entries."""
    from networks.checkpoint.folder import encoder_facts, model_config_values, save_tensors
    from networks.discriminators.loading import empty_discriminators

    options = DiscriminatorConfig(use_stylegan_t_discriminator=True, backbone="random_tiny", **options)
    state = empty_discriminators(options, "bilinear").trainable_parts().state_dict()

    def fill(folder: Path) -> None:
        save_tensors(to_own_state(contents.average, "G_ema", "siglip2"), folder / "model.safetensors")
        save_tensors(state, folder / "discriminators_raw.safetensors")
        (folder / "config.json").write_text(json.dumps(model_config_values(config)))

    facts = {"nimg": 0, "encoder": encoder_facts(config, None), "config": {"discriminator": options.model_dump()}}
    write_checkpoint(folder, fill, facts)
    return len(state)


def test_heads_of_vfmtok_are_not_passed_off_as_those_of_the_reference(contents, config, tmp_path):
    folder = tmp_path / "checkpoint-000000000000"
    write_run(folder, contents, config, projected_kind="vfmtok", diffaug=False)
    assert folder_to_reference(folder, tmp_path).discriminator == 0


@pytest.mark.parametrize("keep_features", [False, True])
def test_discriminators_of_a_run_are_written_by_the_names_of_the_reference(contents, config, tmp_path, keep_features):
    folder = tmp_path / "checkpoint-000000000000"
    count = write_run(folder, contents, config, use_patchgan_discriminator=True, get_interm_feat=keep_features)
    assert folder_to_reference(folder, tmp_path).discriminator == count
    found = torch.load(tmp_path / "network-snapshot-00000000.pth", weights_only=True)["D"]
    expected = (
        ENTRIES["discriminator"]
        | DISCRIMINATORS["stage_3" if keep_features else "patchgan_without_intermediate_features"]["entries"]
    )
    heads = {name: list(v.shape) for name, v in found.items() if name.startswith("patchgan_discriminator.")}
    assert heads == {n: shape for n, shape in expected.items() if n.startswith("patchgan_discriminator.")}
    assert {"heads.0.cls.bias", "heads.0.main.1.fn.0.weight_orig"} <= found.keys() <= expected.keys()


# --- the frozen encoder ----------------------------------------------------------------------------------------------


def with_changed_encoder(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {n: v + 1 if n.endswith("post_layernorm.bias") else v for n, v in state.items()}


def test_an_encoder_that_was_changed_travels_with_its_file(contents, config, tmp_path, caplog):
    changed = with_changed_encoder(contents.average)
    path = save(replace(contents, average=changed, raw=changed), tmp_path / "changed.pth")
    with caplog.at_level(logging.WARNING):
        model = load_tokenizer(path, config)
    assert f"1 of {parts(contents)[1]} weights of the frozen encoder in it differ" in caplog.text
    expected = changed["vfm_encoder.encoder.vision_model.vision_model.post_layernorm.bias"]
    assert torch.equal(model.state_dict()["encoder.backbone.post_layernorm.bias"], expected)

    reference_to_folder(path, tmp_path / "copied", config, include_encoder=True)
    assert_equal_states(load_tokenizer(tmp_path / "copied").state_dict(), model.state_dict())
    reference_to_folder(path, tmp_path / "referred", config)
    with pytest.raises(CheckpointError, match="was trained on an encoder with the fingerprint"):
        load_tokenizer(tmp_path / "referred")
    with pytest.raises(CheckpointError, match="was trained on an encoder with the fingerprint"):
        folder_to_reference(tmp_path / "referred", tmp_path / "back.pth")


def test_names_of_transformers_5_are_accepted_for_the_encoder(contents, config, tmp_path):
    prefix = "vfm_encoder.encoder.vision_model."
    new = {name.replace(prefix + "vision_model.", prefix): value for name, value in contents.average.items()}
    assert new.keys() != contents.average.keys()
    torch.save({"G_ema": new}, tmp_path / "new.pth")
    torch.save({"G_ema": contents.average}, tmp_path / "old.pth")
    assert_equal_states(
        load_tokenizer(tmp_path / "new.pth", config).state_dict(),
        load_tokenizer(tmp_path / "old.pth", config).state_dict(),
    )


def test_another_encoder_than_the_configured_one_is_refused(contents, config, tmp_path):
    state = {n: v for n, v in contents.average.items() if "layers.2." not in n}
    torch.save({"G_ema": state}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"another one than encoder\.vfm_name gives: 16 missing, e\.g\. backbone"):
        load_tokenizer(tmp_path / "other.pth", config)


def test_a_trained_encoder_is_refused(contents, config, tmp_path):
    path = save(replace(contents, raw=with_changed_encoder(contents.raw)), tmp_path / "trained.pth")
    with pytest.raises(
        CheckpointError, match=r"different weights in the encoder, e\.g\. backbone\.post_layernorm\.bias"
    ):
        reference_to_folder(path, tmp_path / "model", config)


def test_an_encoder_that_the_reference_does_not_have_is_refused(config, tmp_path):
    values = config.model_dump(mode="json")
    values["encoder"] |= {"vfm_name": "efficientnet_lite0", "family": "efficientnet_lite0"}
    facts = {"nimg": 0, "encoder": {"sha256": None}}

    def fill(folder: Path) -> None:
        from safetensors.torch import save_file

        save_file({"decoder.mapping.x_avg": torch.zeros(1)}, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(values))

    write_checkpoint(tmp_path / "model", fill, facts)
    with pytest.raises(CheckpointError, match="of the family 'efficientnet_lite0', which the reference does not have"):
        folder_to_reference(tmp_path / "model", tmp_path / "back.pth")


# --- licence ---------------------------------------------------------------------------------------------------------


def test_the_licence_of_the_weights_goes_with_them(pth, config, tmp_path):
    converted = reference_to_folder(pth, tmp_path / "model", config, licence="CC BY-NC 4.0")
    origin = Origin(pth.name, "CC BY-NC 4.0")
    assert converted.origin == origin_of(tmp_path / "model") == origin
    assert json.loads((tmp_path / "model" / "manifest.json").read_text())["derived_from"] == {
        "source": "network-snapshot-00044000.pth",
        "licence": "CC BY-NC 4.0",
    }
    folder_to_reference(tmp_path / "model", tmp_path / "back.pth")
    assert origin_of(tmp_path / "back.pth") == origin
    reference_to_folder(tmp_path / "back.pth", tmp_path / "again", config)
    assert origin_of(tmp_path / "again") == origin


def test_without_a_word_the_licence_is_recorded_as_unknown(pth, config, tmp_path):
    reference_to_folder(pth, tmp_path / "model", config)
    assert origin_of(tmp_path / "model") == Origin(pth.name, UNKNOWN_LICENCE)
    assert "non-commercial" in UNKNOWN_LICENCE


# --- files that are refused ------------------------------------------------------------------------------------------


def refusal(path: Path, config: TokenizerConfig, target: Path) -> str:
    with pytest.raises(UserError) as caught:
        reference_to_folder(path, target, config)
    assert not target.exists()
    return str(caught.value)


class EasyDict(dict):
    """A dictionary class of another program."""


EasyDict.__module__, EasyDict.__qualname__ = "dnnlib.util", "EasyDict"


class Malicious:
    """Would create a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_dictionary_class_of_another_program_is_refused(contents, config, tmp_path, monkeypatch, zipped):
    module = types.ModuleType("dnnlib.util")
    module.EasyDict = EasyDict
    monkeypatch.setitem(sys.modules, "dnnlib", types.ModuleType("dnnlib"))
    monkeypatch.setitem(sys.modules, "dnnlib.util", module)
    content = {"G_ema": dict(list(contents.average.items())[:3]), "training_set_kwargs": EasyDict(OPTIONS)}
    torch.save(content, tmp_path / "easy.pth", _use_new_zipfile_serialization=zipped)
    message = refusal(tmp_path / "easy.pth", config, tmp_path / "model")
    assert "holds an object of dnnlib.util.EasyDict, and reading that could execute code" in message
    assert "save plain dicts" in message


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_file_is_refused_and_not_executed(config, tmp_path, zipped):
    content = {"G_ema": {}, "D": Malicious(tmp_path / "executed")}
    torch.save(content, tmp_path / "bad.pth", _use_new_zipfile_serialization=zipped)
    assert "holds an object of io.open, and reading" in refusal(tmp_path / "bad.pth", config, tmp_path / "model")
    assert not (tmp_path / "executed").exists()


def test_a_file_that_is_cut_off_is_told_so(pth, config, tmp_path):
    content = pth.read_bytes()
    pth.write_bytes(content[: len(content) // 2])
    assert f"is cut off: its {len(content) // 2:,} bytes" in refusal(pth, config, tmp_path / "model")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(1)], "found list, expected a dictionary of tensors"),
        ({}, "holds no weights of a generator, expected them as G_ema or G"),
        ({"D": {"a": torch.zeros(1)}}, "holds no weights of a generator, expected them as G_ema or G"),
        ({"G": {"mapping.x_avg": 3.0}}, "G: entry 'mapping.x_avg' is float, expected a tensor"),
        ({"G": {}, "G_ema": [1]}, "G_ema is list, expected a state dict"),
        ({"epoch": 3}, "entry 'epoch' is int, expected a tensor"),
        ({"G_ema": {"mapping.x_avg": torch.zeros(1)}, "training_set_kwargs": 3}, "training_set_kwargs is int"),
        ({"synthesis.mystery": torch.zeros(1)}, "the weight 'synthesis.mystery' is not of the reference's generator"),
        ({"module.mapping.x_avg": torch.zeros(1)}, "as DataParallel names them: save the state dict of the module"),
        ({"decoder.mapping.x_avg": torch.zeros(1)}, "this project's names: give its checkpoint folder instead"),
    ],
)
def test_content_that_is_no_checkpoint_of_the_reference_is_told(content, message, config, tmp_path):
    torch.save(content, tmp_path / "bad.pth")
    text = refusal(tmp_path / "bad.pth", config, tmp_path / "model")
    assert text.startswith(str(tmp_path / "bad.pth"))
    assert message in text


def test_a_file_that_is_something_else_is_told(config, tmp_path):
    (tmp_path / "text.pth").write_text("hello")
    message = refusal(tmp_path / "text.pth", config, tmp_path / "model")
    assert "is no file that torch.save wrote, or it is damaged" in message
    assert "arbitrary code execution" not in message  # torch's advice to load it all the same


def test_missing_and_misshapen_weights_are_counted_and_named(contents, config, tmp_path):
    state = dict(contents.average)
    del state["mapping.x_avg"], state["mapping.mlp.fc1.bias"]
    state["synthesis.blocks.0.torgb.weight"] = torch.zeros(3, 31, 1, 1)
    torch.save({"G_ema": state}, tmp_path / "bad.pth")
    message = refusal(tmp_path / "bad.pth", config, tmp_path / "model")
    assert "G_ema: the weights do not fit the configuration: 2 missing, e.g. decoder.mapping." in message
    assert "decoder.blocks.0.to_rgb.weight is [3, 31, 1, 1], expected [3, 32, 1, 1]" in message


def test_nothing_is_overwritten(pth, config, tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(CheckpointError, match="exists already; give a folder that does not"):
        reference_to_folder(pth, tmp_path / "model", config)
    reference_to_folder(pth, tmp_path / "other", config)
    with pytest.raises(CheckpointError, match=r"00044000\.pth: exists already; give a name that does not"):
        folder_to_reference(tmp_path / "other", tmp_path)


def test_a_disk_that_is_full_leaves_nothing_behind(contents, tmp_path, monkeypatch):
    def full(*args):
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError, match=r"back\.pth: cannot be written \(PytorchStreamWriter failed"):
        write_reference(tmp_path / "back.pth", contents)
    assert list(tmp_path.iterdir()) == []


def test_options_that_json_does_not_hold_are_left_out_by_name(contents, config, tmp_path, caplog):
    options = {"resolution": 256, "weights": torch.zeros(1)}
    torch.save({"G_ema": contents.average, "training_set_kwargs": options}, tmp_path / "a.pth")
    reference_to_folder(tmp_path / "a.pth", tmp_path / "model", config)
    assert "training_set_kwargs.weights is left out: a Tensor" in caplog.text
    folder_to_reference(tmp_path / "model", tmp_path / "back.pth")
    assert read_reference(tmp_path / "back.pth").training_set_kwargs == {"resolution": 256}


# --- the command -----------------------------------------------------------------------------------------------------


def convert(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "tools" / "convert_checkpoint.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


def test_the_command_converts_both_ways(pth, contents, tiny_encoder, tiny_data, tmp_path):
    write_config(tiny_values(tiny_encoder, tiny_data, tmp_path / "run"), tmp_path / "model.yaml")
    trained, encoder = parts(contents)
    there = convert("--input", pth, "--use-config", "model.yaml", "--output", "model", "--licence", "X", cwd=tmp_path)
    assert there.returncode == 0, there.stderr
    assert there.stdout.splitlines() == [
        f"model: EMA and raw weights of {trained} entries each",
        "frozen encoder: referred to, not copied",
        "discriminators: 230 entries",
        "noise maps: yes, needs legacy: true",
        "weights derive from network-snapshot-00044000.pth, licence: X",
    ]
    back = convert("--input", "model", "--output", "back", cwd=tmp_path)
    assert back.returncode == 0, back.stderr
    path = Path("back") / "network-snapshot-00044000.pth"
    assert back.stdout.splitlines()[:2] == [
        f"{path}: EMA and raw weights of {trained} entries each",
        f"frozen encoder: {encoder} entries",
    ]
    assert_equal_states(torch.load(tmp_path / path, weights_only=True)["G_ema"], contents.average)


def test_the_command_names_what_is_wrong(pth, tmp_path):
    no_config = convert("--input", pth, "--output", "model", cwd=tmp_path)
    assert no_config.returncode == 2
    assert "--use-config: a .pth carries no configuration; give one" in no_config.stderr
    nothing = convert("--input", "runs/mistyped", "--output", "model", cwd=tmp_path)
    assert nothing.returncode == 2
    assert "--input: runs/mistyped does not exist; give a .pth, or a checkpoint or run folder" in nothing.stderr
    no_folder = convert("--input", tmp_path, "--output", "model.pth", cwd=tmp_path)
    assert (no_folder.returncode, no_folder.stdout) == (2, "")
    assert no_folder.stderr.startswith(f"error: {tmp_path}: no complete checkpoint here; give a checkpoint folder")


# --- full size -------------------------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A folder for gigabytes, which pytest would keep."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.mark.slow
def test_the_published_size_comes_back_bit_equal(large_encoder, disk):
    """1182 + 230 entries at full size, the encoder copied along, for there are no weights of it here."""
    encoder = {name: shape for name, shape in ENTRIES["generator"].items() if name.startswith("vfm_encoder.")}
    rest = {name: shape for name, shape in ENTRIES["generator"].items() if name not in encoder}
    path = disk / "network-snapshot-00044000.pth"
    contents = ReferenceCheckpoint(
        random_like(ENTRIES["generator"], 0), None, random_like(ENTRIES["discriminator"], 1), OPTIONS
    )
    raw = random_like(rest, 2) | {name: contents.average[name] for name in encoder}
    save(replace(contents, raw=raw), path)
    del contents, raw
    reference_to_folder(path, disk / "model", published(3, large_encoder), include_encoder=True)
    folder_to_reference(disk / "model", disk / "back.pth")
    found = torch.load(disk / "back.pth", weights_only=True, mmap=True)
    expected = torch.load(path, weights_only=True, mmap=True)
    for name in ("G", "G_ema", "D"):
        assert_equal_states(found[name], expected[name])
    assert sum(value.numel() for value in found["G"].values()) == 457_000_952
