"""The model as users meet it: encoding, decoding, loading, saving, statistics, pictures."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from common.errors import CheckpointError, ConfigError, ShapeError, UserError
from common.value_range import unit_to_signed
from networks import VFMVAE
from networks.checkpoint.convert import reference_to_folder
from networks.checkpoint.origin import Origin
from networks.checkpoint.reference import to_reference_state
from networks.config import TokenizerConfig
from networks.encoders.loading import load_encoder
from networks.model_card import ModelFacts
from networks.vfm_vae import VFMVAETokenizer
from tests.networks.test_tokenizer_families import FAMILIES, values_of
from tests.networks.test_variants import VARIANTS
from tests.tiny import fill_weights, tiny_values
from tests.trainer.conftest import merged

README = Path(__file__).parents[2] / "README.md"


def build(values: dict[str, Any]) -> VFMVAE:
    """A tiny model with filled weights."""
    config = TokenizerConfig(img_resolution=64, **{name: values[name] for name in ("encoder", "latent", "decoder")})
    tokenizer = VFMVAETokenizer(config, load_encoder(config.encoder, config.decoder.reads_texts))
    fill_weights(tokenizer)
    return VFMVAE(tokenizer)


@pytest.fixture(scope="module")
def shared(tiny_encoder) -> VFMVAE:
    return build(tiny_values(tiny_encoder, Path("unused"), Path("unused")))


@pytest.fixture
def vae(shared):
    """The tiny model as it was built, whatever a test does to its settings."""
    config, facts = shared.config, shared.facts
    yield shared
    shared.float().disable_slicing()
    shared.config, shared.facts = config, facts


@pytest.fixture(scope="module")
def saved(shared, tmp_path_factory) -> Path:
    """Its folder, without the encoder. Read only."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    shared.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(3, 3, 64, 96, generator=generator) * 2 - 1


def reconstruct(vae: VFMVAE, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return vae(images).sample


# --- encoding and decoding -------------------------------------------------------------------------------------------


def test_images_are_signed_on_both_sides(vae) -> None:
    unit = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        posterior = vae.encode(unit_to_signed(unit)).latent_dist
        inside = vae.tokenizer.encode(unit).posterior
        assert torch.allclose(posterior.mean, inside.mean, atol=1e-5)
        assert torch.allclose(posterior.std, inside.std, rtol=1e-4)
        z = posterior.mode()
        assert torch.equal(vae.decode(z).sample, vae.tokenizer.decode(z).reconstruction)
    assert z.shape == (2, 4, 8, 8)
    assert posterior.kl().shape == (2,)


def test_samples_come_from_the_generator(vae, images) -> None:
    with torch.no_grad():
        posterior = vae.encode(images).latent_dist
        first, again, other = (posterior.sample(torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
        drawn = vae(images, sample_posterior=True, generator=torch.Generator().manual_seed(0)).sample
        assert torch.equal(drawn, vae.decode(first).sample)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_encoding_draws_no_random_number(vae, images) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    reconstruct(vae, images)
    assert torch.equal(torch.get_rng_state(), before)


def test_tuples_are_given_on_request(vae, images) -> None:
    with torch.no_grad():
        (posterior,) = vae.encode(images, return_dict=False)
        (sample,) = vae.decode(posterior.mode(), return_dict=False)
        (whole,) = vae(images, return_dict=False)
    assert torch.equal(sample, whole)


def test_a_discrete_model_gives_tokens_and_a_certain_latent(tiny_encoder, images) -> None:
    discrete = {
        "latent.compression_mode": "discrete",
        "latent.vocab_width": 8,
        "latent.vocab_size": 64,
        "latent.num_codebooks": 2,
    }
    vae = build(merged(tiny_values(tiny_encoder, Path("unused"), Path("unused")), discrete))
    with torch.no_grad():
        output = vae.encode(images)
        z = output.latent_dist.mode()
        inside = vae.tokenizer.encode((images + 1) / 2)
        assert torch.equal(output.tokens, inside.quantized.indices)
        assert output.tokens.shape == (3, 2, 8, 12)
        assert torch.equal(output.latent_dist.sample(torch.Generator()), z)
        assert output.latent_dist.std.abs().max() == 0
        reconstruction = vae.decode(z).sample
        assert torch.allclose(vae.decode_tokens(output.tokens).sample, reconstruction, atol=1e-5)
        assert torch.equal(vae(images, sample_posterior=True).sample, reconstruction)
        vae.enable_slicing(2)
        assert torch.equal(vae.encode(images).tokens, output.tokens)
    assert vae.config.latent_channels == 8


def test_a_continuous_model_has_no_tokens(vae, images) -> None:
    assert vae.encode(images).tokens is None
    with pytest.raises(UserError, match="this tokenizer has no tokens"):
        vae.decode_tokens(torch.zeros(1, 2, 8, 8, dtype=torch.int64))


@pytest.mark.parametrize("variant", ["class indices", "cross-attention"])
def test_a_conditional_model_takes_labels_whole_and_in_slices(variant: str, tiny_text_encoder, images) -> None:
    vae = build(merged(tiny_values(tiny_text_encoder, Path("unused"), Path("unused")), VARIANTS[variant]))
    labels = torch.eye(3) if variant == "class indices" else ["a red fox", "crane", "a blue whale"]
    with torch.no_grad():
        z = vae.encode(images).latent_dist.mode()
        whole = vae.decode(z, c=labels).sample
        assert torch.equal(whole, vae.tokenizer.decode(z, labels).reconstruction)
        assert torch.equal(whole, vae(images, c=labels).sample)
        vae.enable_slicing(2)
        assert (vae.decode(z, c=labels).sample - whole).norm() <= 1e-5 * whole.norm()
        with pytest.raises(ShapeError, match=r"c: found .* for 2 latents"):
            vae.decode(z[:2], c=labels)
        with pytest.raises(UserError, match="c: missing, but this decoder is conditional"):
            vae.decode(z)


def test_gradients_flow_through_the_decoder_to_the_latent(vae) -> None:
    z = torch.randn(1, 4, 8, 8, requires_grad=True)
    vae.decode(z).sample.square().mean().backward()
    assert z.grad.abs().max() > 0
    vae.zero_grad()


@pytest.mark.parametrize(
    ("shape", "found"), [((3, 64, 64), r"\[3, 64, 64\]"), ((1, 4, 64, 64), ""), ((0, 3, 64, 64), r"\[0, 3, 64, 64\]")]
)
def test_what_is_no_batch_of_images_is_refused(vae, shape: tuple[int, ...], found: str) -> None:
    with pytest.raises(ShapeError, match=f"found images of shape {found}.*expected \\[B, 3, height, width\\]"):
        vae.encode(torch.zeros(shape))


def test_latents_of_another_model_are_refused(vae) -> None:
    with pytest.raises(ShapeError, match=r"found latents of shape \[1, 5, 8, 8\], expected \[B, 4, height, width\]"):
        vae.decode(torch.zeros(1, 5, 8, 8))


def test_integers_are_no_images(vae) -> None:
    with pytest.raises(UserError, match=r"images: found torch.uint8, expected floating point in \[-1, 1\]"):
        vae.encode(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


@pytest.mark.parametrize("images_per_slice", [1, 2, 3, 4])
def test_slices_give_what_the_whole_batch_gives(vae, images, images_per_slice: int) -> None:
    whole = reconstruct(vae, images)
    sizes = []
    hook = vae.tokenizer.decoder.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    vae.enable_slicing(images_per_slice)
    sliced = reconstruct(vae, images)
    hook.remove()
    assert sizes == {1: [1, 1, 1], 2: [2, 1]}.get(images_per_slice, [3])
    assert (sliced - whole).norm() <= 1e-6 * whole.norm()
    vae.disable_slicing()
    assert torch.equal(reconstruct(vae, images), whole)


def test_slices_without_images_are_refused(vae) -> None:
    with pytest.raises(UserError, match="images_per_slice: found 0, expected at least 1"):
        vae.enable_slicing(0)


def test_a_size_that_does_not_fit_is_refused_with_the_multiple(vae) -> None:
    assert vae.image_multiple == 16
    with pytest.raises(ShapeError, match=r"72 x 64 pixels.* multiples of 16\..*to 64 x 64"):
        vae.encode(torch.zeros(1, 3, 72, 64))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 0.01), (torch.bfloat16, 0.08)])
def test_another_precision_computes_in_it_and_loses_no_weight(vae, images, dtype, tolerance: float) -> None:
    exact = reconstruct(vae, images)
    rounded = reconstruct(vae.to(dtype), images.to(dtype))
    assert vae.dtype == rounded.dtype == dtype
    assert 0 < (rounded.float() - exact).norm() / exact.norm() < tolerance
    assert vae.encode(images).latent_dist.mean.dtype == torch.float32
    assert torch.equal(reconstruct(vae.float(), images), exact)
    with pytest.raises(UserError, match=r"found torch\.float64, expected one of torch\.float32"):
        vae.double()


def test_the_class_is_imported_only_when_it_is_asked_for() -> None:
    code = "import sys, networks; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=README.parent)
    import networks

    with pytest.raises(AttributeError, match="module 'networks' has no attribute 'VFMVEA'"):
        _ = networks.VFMVEA


# --- configuration and statistics ------------------------------------------------------------------------------------


def test_configuration_reads_like_that_of_a_diffusers_autoencoder(vae) -> None:
    c = vae.config
    assert (c.in_channels, c.out_channels, c.latent_channels, c.sample_size) == (3, 3, 4, 64)
    assert (c.scaling_factor, c.latents_mean, c.latents_std) == (1.0, None, None)
    assert 2 ** (len(c.block_out_channels) - 1) == c.latent.resolution_compression_factor == 8


def test_stored_statistics_bring_the_latent_to_unit_variance(vae, images, tmp_path) -> None:
    def latents(model: VFMVAE) -> torch.Tensor:
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            return torch.cat([model.encode(batch).latent_dist.sample(generator) for batch in images.split(2)])

    vae.store_statistics(vae.measure_latents(images.split(2), torch.Generator().manual_seed(7)))
    vae.save_pretrained(tmp_path / "model")
    loaded = VFMVAE.from_pretrained(tmp_path / "model")
    assert loaded.config.latents_mean == vae.config.latents_mean
    z, c = latents(loaded), loaded.config
    assert (z * c.scaling_factor).std() == pytest.approx(1, rel=1e-3)
    mean, std = (torch.tensor(values).view(1, 4, 1, 1) for values in (c.latents_mean, c.latents_std))
    normalised = (z - mean) / std
    assert normalised.mean(dim=(0, 2, 3)).abs().max() < 1e-5
    assert torch.allclose(normalised.std(dim=(0, 2, 3)), torch.ones(4), rtol=1e-5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"latents_mean": [0.0], "latents_std": [1.0]}, "latents_mean has 1 values for 4 latent channels"),
        ({"latents_mean": [0.0] * 4}, "latents_mean and latents_std belong together"),
        ({"scaling_factor": 0.0}, "scaling_factor: found 0.0"),
    ],
)
def test_statistics_that_do_not_fit_are_refused(saved, tmp_path, values: dict, message: str) -> None:
    folder = shutil.copytree(saved, tmp_path / "model")
    rewrite(folder, "config.json", values)
    with pytest.raises(ConfigError, match=re.escape(message)):
        VFMVAE.from_pretrained(folder)


def rewrite(folder: Path, name: str, values: dict) -> None:
    """Change a JSON file of a saved model and make the manifest agree with it."""
    from common.checkpoint_folder import _write_manifest

    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(content | values))
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").unlink()
    (folder / "manifest.sha256").unlink()
    _write_manifest(folder, {k: v for k, v in manifest.items() if k not in ("schema_version", "files", "versions")})


# --- loading and saving ----------------------------------------------------------------------------------------------


def test_a_saved_model_gives_the_same_numbers(vae, saved, images) -> None:
    loaded = VFMVAE.from_pretrained(saved)
    assert not loaded.training
    assert torch.equal(reconstruct(loaded, images), reconstruct(vae, images))
    assert loaded.config == vae.config.model_copy(
        update={"encoder": vae.config.encoder.model_copy(update={"family": "siglip2"})}
    )
    names = {path.relative_to(saved).as_posix() for path in saved.rglob("*")}
    assert names == {"README.md", "config.json", "manifest.json", "manifest.sha256", "model.safetensors"}


def test_run_folders_and_subfolders_are_found(vae, saved, images, tmp_path) -> None:
    shutil.copytree(saved, tmp_path / "run" / "checkpoints" / "checkpoint-000000000008")
    expected = reconstruct(vae, images)
    assert torch.equal(reconstruct(VFMVAE.from_pretrained(tmp_path / "run"), images), expected)
    shutil.copytree(saved, tmp_path / "all" / "vae")
    assert torch.equal(reconstruct(VFMVAE.from_pretrained(tmp_path / "all", subfolder="vae"), images), expected)


@pytest.mark.parametrize("name", [*FAMILIES, "timm clip", "qwen tower alone"])
def test_a_model_with_its_encoder_needs_nothing_else(name: str, folders, images, tmp_path) -> None:
    """Not even a name that tells the family: the encoder lies in a folder called `some`, and is gone afterwards."""
    encoder = shutil.copytree(folders[name], tmp_path / "some")
    if name == "timm clip":  # such a folder says itself how pixels are normalised
        own = json.loads((encoder / "config.json").read_text())
        own["pretrained_cfg"]["mean"] = [0.1, 0.2, 0.3]
        (encoder / "config.json").write_text(json.dumps(own))
    model = build(values_of(name, encoder, Path("unused"), Path("unused")))
    model.save_pretrained(tmp_path / "whole", include_encoder=True)
    expected = reconstruct(model, images)
    shutil.rmtree(encoder)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    loaded = VFMVAE.from_pretrained(tmp_path / "whole")
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(reconstruct(loaded, images), expected)


def test_a_copy_of_an_encoder_has_its_text_model_and_tokenizer(tiny_text_encoder, tmp_path) -> None:
    encoder = shutil.copytree(tiny_text_encoder, tmp_path / "some")
    values = tiny_values(encoder, Path("unused"), Path("unused"))
    model = build(merged(values, VARIANTS["cross-attention"]))
    model.save_pretrained(tmp_path / "first", include_encoder=True)
    shutil.rmtree(encoder)
    loaded = VFMVAE.from_pretrained(tmp_path / "first")
    z, texts = torch.randn(2, 4, 8, 8), ["a red fox", "crane"]
    with torch.no_grad():
        assert torch.equal(loaded.decode(z, c=texts).sample, model.decode(z, c=texts).sample)


def test_a_copy_of_a_copy_is_whole_and_protected(tiny_encoder, images, tmp_path) -> None:
    encoder = shutil.copytree(tiny_encoder, tmp_path / "some")
    model = build(tiny_values(encoder, Path("unused"), Path("unused")))
    model.save_pretrained(tmp_path / "first", include_encoder=True)
    shutil.rmtree(encoder)
    VFMVAE.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second", include_encoder=True)
    shutil.rmtree(tmp_path / "first")
    second = tmp_path / "second"
    assert torch.equal(reconstruct(VFMVAE.from_pretrained(second), images), reconstruct(model, images))
    assert json.loads((second / "config.json").read_text())["encoder"]["vfm_name"] == str(encoder)
    (second / "encoder" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"encoder/config\.json: found 2 bytes, expected"):
        VFMVAE.from_pretrained(second)


def test_an_encoder_that_comes_as_a_package_is_copied_without_a_configuration(images, tmp_path) -> None:
    encoder = {
        "encoder.vfm_name": "efficientnet_lite0",
        "encoder.scale_factor": 2.0,
        "encoder.patch_from_layers": [2, -1],
        "encoder.patch_in_dimensions": [160, 112],
        "latent.patch_out_dimensions": [8, 8],
    }
    model = build(merged(tiny_values("unused", Path("unused"), Path("unused")), encoder))
    model.save_pretrained(tmp_path / "model", include_encoder=True)
    assert not (tmp_path / "model" / "encoder").exists()
    assert torch.equal(reconstruct(VFMVAE.from_pretrained(tmp_path / "model"), images), reconstruct(model, images))


def test_a_converted_model_with_its_encoder_needs_nothing_else_and_keeps_its_licence(
    tiny_encoder, images, tmp_path
) -> None:
    encoder = shutil.copytree(tiny_encoder, tmp_path / "some")
    model = build(tiny_values(encoder, Path("unused"), Path("unused")))
    state = model.tokenizer.state_dict()
    torch.save({"G_ema": to_reference_state(state, "siglip2")}, tmp_path / "network-snapshot-00044000.pth")
    reference_to_folder(
        tmp_path / "network-snapshot-00044000.pth",
        tmp_path / "converted",
        model.tokenizer.config,
        licence="cc-by-nc-4.0",
        include_encoder=True,
    )
    shutil.rmtree(encoder)
    loaded = VFMVAE.from_pretrained(tmp_path / "converted")
    assert torch.equal(reconstruct(loaded, images), reconstruct(model, images))
    loaded.save_pretrained(tmp_path / "saved")
    metadata, text = card(tmp_path / "saved")
    assert metadata["license"] == "cc-by-nc-4.0"
    assert "They derive from network-snapshot-00044000.pth, licence: cc-by-nc-4.0." in text
    assert "The weights have seen 44,000,000 images." in text


def test_a_moved_encoder_is_found_where_the_caller_says(vae, tiny_encoder, images, tmp_path) -> None:
    encoder = shutil.copytree(tiny_encoder, tmp_path / "siglip2-patch8")
    build(tiny_values(encoder, Path("unused"), Path("unused"))).save_pretrained(tmp_path / "model")
    shutil.move(encoder, tmp_path / "moved-siglip2-patch8")
    with pytest.raises(UserError, match="siglip2-patch8' does not exist; give a model folder or a hub id"):
        VFMVAE.from_pretrained(tmp_path / "model")
    loaded = VFMVAE.from_pretrained(tmp_path / "model", vfm_name=str(tmp_path / "moved-siglip2-patch8"))
    assert torch.equal(reconstruct(loaded, images), reconstruct(vae, images))
    assert loaded.facts.encoder["vfm_name"] == str(tmp_path / "moved-siglip2-patch8")


def test_only_the_two_kinds_of_weights_can_be_asked_for(saved) -> None:
    with pytest.raises(UserError, match="weights: found 'EMA', expected one of ema, raw"):
        VFMVAE.from_pretrained(saved, weights="EMA")


def test_an_existing_folder_is_not_written_over(vae, saved) -> None:
    with pytest.raises(CheckpointError, match="exists already; give a folder that does not"):
        vae.save_pretrained(saved)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", "nowhere: no such folder; expected one, or a hub id"),
        (str(README), "is a file, expected a folder or a hub id; tools/convert_checkpoint.py makes a folder of a .pth"),
        (str(README.parent / "docs"), "docs: no complete checkpoint here"),
    ],
)
def test_what_is_no_model_is_refused_with_what_to_do(name: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=re.escape(message)):
        VFMVAE.from_pretrained(name)


# --- the hub ---------------------------------------------------------------------------------------------------------


def test_a_model_on_the_hub_is_fetched_at_its_revision(saved, images, vae, monkeypatch) -> None:
    calls = []

    def fetch(model_id: str, **options) -> str:
        calls.append((model_id, options))
        return str(saved.parent)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    loaded = VFMVAE.from_pretrained("acme/vae", revision="v1", subfolder="model")
    assert calls == [("acme/vae", {"revision": "v1", "allow_patterns": ["model/*"]})]
    assert torch.equal(reconstruct(loaded, images), reconstruct(vae, images))


def test_without_a_network_the_error_says_what_to_do() -> None:
    with pytest.raises(CheckpointError, match="hf download acme/no-such-model --local-dir DIR"):
        VFMVAE.from_pretrained("acme/no-such-model")


class FakeHub:
    """Keeps what is uploaded."""

    def __init__(self, kept: Path):
        self.kept = kept
        self.calls = []

    def create_repo(self, repo_id: str, **options) -> str:
        self.calls.append(("create", repo_id, options))
        return f"https://hub.example/{repo_id}"

    def upload_folder(self, *, folder_path: Path, **options) -> None:
        self.calls.append(("upload", options))
        shutil.copytree(folder_path, self.kept)


def test_pushing_uploads_a_folder_that_loads(vae, images, tmp_path, monkeypatch) -> None:
    hub = FakeHub(tmp_path / "uploaded")
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)
    address = vae.push_to_hub("acme/vae", private=True, include_encoder=True, licence="apache-2.0")
    assert address == "https://hub.example/acme/vae"
    assert hub.calls == [
        ("create", "acme/vae", {"private": True, "exist_ok": True}),
        ("upload", {"repo_id": "acme/vae", "commit_message": "Upload model", "revision": None}),
    ]
    assert torch.equal(reconstruct(VFMVAE.from_pretrained(hub.kept), images), reconstruct(vae, images))


def test_pushing_without_the_encoder_warns_if_only_this_machine_has_it(vae, tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: FakeHub(tmp_path / "uploaded"))
    vae.push_to_hub("acme/vae")
    assert f"refers to its frozen encoder as {vae.config.encoder.vfm_name}, a folder of this machine" in caplog.text


def test_a_refusal_of_the_hub_says_what_to_do(vae, monkeypatch) -> None:
    class Refuses(FakeHub):
        def create_repo(self, repo_id: str, **options) -> str:
            raise OSError("401 Unauthorized")

    monkeypatch.setattr("huggingface_hub.HfApi", lambda: Refuses(Path("unused")))
    with pytest.raises(CheckpointError, match=r"acme/vae: could not be written to the hub \(401 Unauthorized\)"):
        vae.push_to_hub("acme/vae")


# --- the card --------------------------------------------------------------------------------------------------------


def card(folder: Path) -> tuple[dict, str]:
    """Metadata and text of a model's card."""
    _, metadata, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(metadata), text


def test_the_card_names_encoder_licences_protocol_and_metrics(vae, tmp_path) -> None:
    vae.facts = replace(
        vae.facts,
        encoder={**vae.facts.encoder, "vfm_name": "google/siglip2-large-patch16-512", "revision": "abc"},
        nimg=44_000_000,
        origin=Origin("network-snapshot.pth", "cc-by-nc-4.0"),
        protocol={"training": {"batch_size": 256}},
    )
    measured = {"psnr": 22.99, "lpips": None, "protocol": {"psnr": "mean of per-image PSNR in dB"}}
    vae.save_pretrained(tmp_path / "model", metrics=measured)
    metadata, text = card(tmp_path / "model")
    assert metadata == {
        "license": "cc-by-nc-4.0",
        "library_name": "vfm-vae",
        "tags": ["vfm-vae", "visual-tokenizer", "autoencoder"],
        "base_model": "google/siglip2-large-patch16-512",
    }
    for expected in (
        "# VFM-VAE on google/siglip2-large-patch16-512",
        "multiples of 16 pixels <-> latents of 4 channels at 1/8 of the side",
        "| licence | Apache-2.0 |",
        "| revision | abc |",
        f"`{vae.facts.encoder['sha256']}`",
        "They derive from network-snapshot.pth, licence: cc-by-nc-4.0.",
        "The weights have seen 44,000,000 images.",
        "```yaml\ntraining:\n  batch_size: 256\n```",
        "| psnr | 22.99 |",
        "- psnr: mean of per-image PSNR in dB",
    ):
        assert expected in text
    assert "lpips" not in text
    manifest = json.loads((tmp_path / "model" / "manifest.json").read_text())
    assert ModelFacts.from_manifest(manifest) == replace(vae.facts, metrics=measured)


def test_the_card_of_a_model_of_which_nothing_is_known_says_so(saved, tiny_encoder) -> None:
    metadata, text = card(saved)
    assert (metadata["license"], metadata["license_name"]) == ("other", "see-below")
    assert "base_model" not in metadata
    assert str(tiny_encoder.parent) not in text
    for expected in ("not stated; ask", "unrecorded number of images", "No metric of reconstruction is recorded."):
        assert expected in text


def test_the_protocol_of_a_run_names_no_place_on_its_machine(tiny_encoder, tiny_data) -> None:
    values = tiny_values(tiny_encoder, tiny_data, Path("/somewhere/run"))
    facts = ModelFacts.from_manifest({"encoder": {}, "nimg": 8, "config": values})
    assert facts.protocol["training"]["batch_size"] == 4
    assert facts.protocol["data"] == {"resolution": 64, "workers": 0}
    assert set(facts.protocol) == {"data", "equivariance", "losses", "optimizer", "training"}


# --- pictures --------------------------------------------------------------------------------------------------------


def test_a_picture_comes_back_from_its_tensor(vae) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (71, 100, 3), dtype=np.uint8)
    tensor = vae.preprocess(Image.fromarray(pixels))
    assert tensor.shape == (1, 3, 64, 96)
    assert tensor.min() == -1 and tensor.max() == 1
    (picture,) = vae.postprocess(tensor)
    assert np.array_equal(np.asarray(picture), pixels[3:67, 2:98])
    assert vae.postprocess(torch.full((2, 3, 8, 8), 9.0))[1].getpixel((0, 0)) == (255, 255, 255)


def test_a_picture_that_is_too_small_is_refused(vae) -> None:
    with pytest.raises(ShapeError, match="10 x 96 pixels"):
        vae.encode(vae.preprocess(Image.new("L", (100, 10))))


def test_the_script_in_the_readme_encodes_and_decodes_a_picture(saved, tmp_path, monkeypatch) -> None:
    (script,) = re.findall(r"```python\n(.*?VFMVAE.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    lines = [line for line in script.splitlines() if line.strip() and "import" not in line]
    assert len(lines) <= 5
    monkeypatch.chdir(tmp_path)
    shutil.copytree(saved, tmp_path / "runs" / "my_run")
    Image.new("RGB", (80, 70), "orange").save(tmp_path / "photo.jpg")
    exec(compile(script, str(README), "exec"), {})
    with Image.open(tmp_path / "reconstruction.png") as picture:
        assert (picture.mode, picture.size) == ("RGB", (80, 64))


# --- diffusers -------------------------------------------------------------------------------------------------------


def test_a_diffusers_pipeline_decodes_with_it(vae) -> None:
    """DiT: latents / scaling_factor -> decode -> sample / 2 + 0.5 -> pictures; in fp32 and in bf16."""
    from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=vae.config.latent_channels,
        out_channels=2 * vae.config.latent_channels,
        num_layers=1,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_zero",
        norm_elementwise_affine=False,
    )
    pipeline = DiTPipeline(transformer=transformer, vae=vae, scheduler=DDIMScheduler(num_train_timesteps=10))
    pipeline.set_progress_bar_config(disable=True)
    decoded = []
    hook = vae.tokenizer.decoder.register_forward_pre_hook(lambda _, inputs: decoded.append(inputs[0]))

    def generate() -> np.ndarray:
        generator = torch.Generator().manual_seed(0)
        return pipeline(class_labels=[1, 2], generator=generator, num_inference_steps=2, output_type="np").images

    pictures = generate()
    with torch.no_grad():
        expected = (vae.decode(decoded[0]).sample / 2 + 0.5).clamp(0, 1)
    assert np.allclose(pictures, expected.permute(0, 2, 3, 1).numpy(), atol=1e-6)
    vae.config = vae.config.model_copy(update={"scaling_factor": 2.0})
    generate()
    assert torch.allclose(decoded[-1] * 2, decoded[0])
    hook.remove()
    pipeline.to(torch.bfloat16)
    assert vae.dtype == torch.bfloat16
    assert generate().shape == (2, 64, 64, 3)


def test_the_image_processor_of_diffusers_speaks_its_value_range(vae) -> None:
    from diffusers.image_processor import VaeImageProcessor

    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8))
    processor = VaeImageProcessor(vae_scale_factor=8)
    tensor = processor.preprocess(picture)
    assert torch.allclose(tensor, vae.preprocess(picture), atol=1e-6)
    (theirs,), (ours,) = processor.postprocess(tensor), vae.postprocess(tensor)
    assert np.array_equal(np.asarray(theirs), np.asarray(ours))
