"""Reading tokenizers: this project's folders and the reference's files."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from common.errors import CheckpointError, ConfigError
from networks import VFMVAE
from networks.checkpoint import load_tokenizer, to_reference_name
from networks.config import TokenizerConfig
from tests.tiny import tiny_values
from tests.trainer.conftest import build_trainer, merged, run_until


@pytest.fixture(scope="module")
def trained(tiny_encoder, tiny_data, tmp_path_factory):
    """A run of two steps."""
    from common.config import Source
    from configs.schema import check

    values = tiny_values(tiny_encoder, tiny_data, tmp_path_factory.mktemp("run"))
    values = merged(values, {"training.total_kimg": 0.008, "checkpoint.keep_last": 1})
    return run_until(build_trainer(check(Source("tiny.yaml", values)).config))


@pytest.fixture
def run_dir(trained, tmp_path):
    """A copy of its folder."""
    return shutil.copytree(trained.config.run.run_dir, tmp_path / "copy")


def test_a_run_folder_gives_the_average_and_the_raw_weights(trained, run_dir) -> None:
    images = torch.rand(2, 3, 64, 64)
    for weights, model in (("ema", trained.system.average), ("raw", trained.system.tokenizer)):
        loaded = load_tokenizer(run_dir, weights=weights)
        assert not loaded.training
        with torch.no_grad():
            z = loaded.encode(images).posterior.mode()
            assert torch.equal(z, model.encode(images).posterior.mode())
            assert torch.equal(loaded.decode(z).reconstruction, model.decode(z).reconstruction)


def test_a_flipped_bit_is_found_before_a_tensor_is_used(run_dir) -> None:
    (folder,) = (run_dir / "checkpoints").iterdir()
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="all 1 checkpoints are damaged"):
        load_tokenizer(run_dir)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged"):
        load_tokenizer(folder)


def test_a_damaged_manifest_is_found(run_dir) -> None:
    (folder,) = (run_dir / "checkpoints").iterdir()
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace('"nimg": 8', '"nimg": 9'))
    with pytest.raises(CheckpointError, match=r"manifest\.json: damaged"):
        load_tokenizer(folder)


def test_another_encoder_than_the_one_trained_on_is_refused(run_dir, tiny_encoder, tmp_path) -> None:
    from transformers import SiglipVisionModel

    other = SiglipVisionModel.from_pretrained(tiny_encoder)
    other.post_layernorm.weight.data[0] += 1
    other.save_pretrained(tmp_path / "siglip2-patch8")
    (folder,) = (run_dir / "checkpoints").iterdir()
    values = json.loads((folder / "config.json").read_text())
    values.pop("model_type")
    values["encoder"]["vfm_name"] = str(tmp_path / "siglip2-patch8")
    with pytest.raises(CheckpointError, match="was trained on an encoder with the fingerprint"):
        load_tokenizer(run_dir, TokenizerConfig(**values))


def test_a_wrong_configuration_of_a_checkpoint_is_told_with_its_key(run_dir, trained) -> None:
    config = trained.config.tokenizer().model_dump(mode="json")
    config["decoder"]["num_res_blocks"] = 2
    with pytest.raises(CheckpointError, match=r"missing, e\.g\. decoder\.blocks\.0\.layers\.4"):
        load_tokenizer(run_dir, TokenizerConfig(**config))


def reference_file(trained, path, **extra):
    """The trained tokenizer as the reference would have saved it."""
    state = {
        to_reference_name(name, family="siglip2"): value for name, value in trained.system.average.state_dict().items()
    }
    torch.save({"G": state, "G_ema": state, "D": {}, "training_set_kwargs": {"resolution": 64}, **extra}, path)
    return path


def test_a_reference_file_gives_the_same_images(trained, tmp_path) -> None:
    loaded = load_tokenizer(reference_file(trained, tmp_path / "snapshot.pth"), trained.config.tokenizer())
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        z = loaded.encode(images).posterior.mode()
        expected = trained.system.average.decode(z).reconstruction
        assert torch.equal(loaded.decode(z).reconstruction, expected)


def test_a_reference_file_needs_a_configuration(trained, tmp_path) -> None:
    with pytest.raises(CheckpointError, match="carries no configuration; give one"):
        load_tokenizer(reference_file(trained, tmp_path / "snapshot.pth"))


def test_noise_maps_of_a_file_must_agree_with_legacy(trained, tmp_path) -> None:
    config = trained.config.tokenizer().model_dump(mode="json")
    config["decoder"]["legacy"] = False
    path = reference_file(trained, tmp_path / "snapshot.pth")
    with pytest.raises(CheckpointError, match=r"decoder\.legacy is false, but the file has noise maps"):
        load_tokenizer(path, TokenizerConfig(**config))
    config["decoder"]["legacy"] = None
    assert load_tokenizer(path, TokenizerConfig(**config)).has_noise


def test_nothing_here_is_said_plainly(tmp_path, trained) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        load_tokenizer(tmp_path / "nothing.pth", trained.config.tokenizer())
    with pytest.raises(CheckpointError, match="no complete checkpoint here"):
        load_tokenizer(tmp_path)


def test_a_configuration_with_a_typo_is_refused(run_dir) -> None:
    from networks.checkpoint import read_model_config

    (folder,) = (run_dir / "checkpoints").iterdir()
    values = json.loads((folder / "config.json").read_text())
    values["latent"]["z_dimensions"] = 4
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=r"latent\.z_dimensions: unknown key\. Closest: z_dimension\."):
        read_model_config(folder)


def test_a_checkpoint_that_includes_its_encoder_needs_no_other_file(tiny_encoder, tiny_data, tmp_path) -> None:
    from common.config import Source
    from configs.schema import check

    encoder = shutil.copytree(tiny_encoder, tmp_path / "some")
    values = merged(
        tiny_values(encoder, tiny_data, tmp_path / "run"),
        {"training.total_kimg": 0.004, "checkpoint.include_encoder": True},
    )
    trained = run_until(build_trainer(check(Source("tiny.yaml", values)).config))
    shutil.rmtree(encoder)
    images = torch.rand(1, 3, 64, 96)
    for weights, model in (("raw", trained.system.tokenizer), ("ema", trained.system.average)):
        loaded = VFMVAE.from_pretrained(tmp_path / "run", weights=weights)
        with torch.no_grad():
            expected = model.encode(images).posterior.mode()
            assert torch.equal(loaded.tokenizer.encode(images).posterior.mode(), expected)
    assert loaded.facts.nimg == 4
    assert loaded.facts.encoder["vfm_name"] == str(encoder)
    assert loaded.facts.protocol["training"]["total_kimg"] == 0.004
