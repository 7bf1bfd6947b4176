"""VFMTok as a whole: sizes, errors, tokens, files."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch

from common.config import Source
from common.errors import CheckpointError, ShapeError, UserError
from configs.schema import check, load_config
from networks.checkpoint import load_tokenizer
from networks.checkpoint.convert import folder_to_reference, reference_to_folder
from networks.checkpoint.names import VFMTOK, to_own_name, to_reference_name
from networks.encoders.loading import load_encoder
from networks.vfmtok.tokenizer import VFMTokTokenizer
from tests.golden.cases import fill
from tests.tiny import tiny_vfmtok_values

ROOT = Path(__file__).parents[3]
ENTRIES = json.loads((ROOT / "tests/networks/data/reference_vfmtok.json").read_text(encoding="utf-8"))["entries"]


@pytest.fixture(scope="module")
def config(tiny_encoder, tmp_path_factory):
    values = tiny_vfmtok_values(tiny_encoder, Path("nowhere"), tmp_path_factory.mktemp("run"))
    return check(Source("tiny_vfmtok.yaml", values)).config.tokenizer()


@pytest.fixture(scope="module")
def model(config):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return VFMTokTokenizer(config, load_encoder(config.encoder)).eval()


@pytest.fixture
def images():
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


# --- sizes -------------------------------------------------------------------------------------------------------


def test_the_published_tokenizer_has_the_published_parameters_and_entries():
    published = load_config(ROOT / "configs/vfmtok.yaml").config.tokenizer()
    with torch.device("meta"):
        model = VFMTokTokenizer(published, None)

    def count(part):
        return sum(p.numel() for p in part.parameters())

    assert count(model) == 73_286_831
    assert count(model.region_encoder) == 20_377_856
    assert count(model.decoder.transformer) == 19_900_448
    assert count(model.decoder.pixels) == 32_799_107
    own = {name: list(value.shape) for name, value in model.state_dict().items() if not name.endswith(".usage")}
    listed = {key: shape for key, shape in ENTRIES.items() if key != "slot_quantize.codebook_used"}
    assert {to_reference_name(name, VFMTOK): shape for name, shape in own.items()} == listed
    assert {to_own_name(key, VFMTOK): shape for key, shape in listed.items()} == own


# --- errors --------------------------------------------------------------------------------------------------------


def test_another_image_size_is_refused_with_the_one_that_fits(model):
    with pytest.raises(ShapeError, match=r"images of 64 x 32 pixels .* takes 32 x 32 only; crop or resize them"):
        model.encode(torch.rand(1, 3, 64, 32))
    with pytest.raises(ShapeError, match=r"found images of shape \[3, 32, 32\], expected \[B, 3, height, width\]"):
        model.encode(torch.rand(3, 32, 32))


def test_another_latent_and_labels_are_refused(model):
    with pytest.raises(ShapeError, match=r"found latents of shape \[1, 6, 8, 8\], expected \[B, 6, 4, 4\]"):
        model.decode(torch.rand(1, 6, 8, 8))
    with pytest.raises(UserError, match="labels: this tokenizer's decoder is not conditional"):
        model.decode(torch.rand(1, 6, 4, 4), c=torch.zeros(1, 10))


def test_a_token_out_of_range_is_refused(model):
    with pytest.raises(UserError, match="found tokens from 0 to 48, expected 0 to 47"):
        model.tokens_to_latent(torch.tensor([0, 48] * 8).view(1, 1, 4, 4))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"region_encoder": {"num_tokens": 15}}, "region_encoder.num_tokens: found 15, expected a square, e.g. 9"),
        ({"region_encoder": {"width": 30, "heads": 4}}, "region_encoder.heads: found 4, expected a divisor"),
        ({"pixel_decoder": {"channels": 24}}, "pixel_decoder.multipliers: gives 24 channels, expected a multiple"),
        ({"data": {"path": "x", "resolution": 36}}, "data.resolution: 36 x encoder.scale_factor 1 is not divisible"),
        ({"pixel_decoder": {"multipliers": [1] * 7}}, "data.resolution: 32 is not divisible by the pixel decoder's"),
        ({"data": {"path": "x", "resolution": 32, "label_type": "cls2id"}}, 'data.label_type: found "cls2id"'),
        ({"losses": {"l2_pixel": {"weight": 1.0}}}, "losses.vq: has no weight, but only this term"),
        ({"losses": {"vq": {"weight": 1.0}, "kl": {"weight": 1.0}}}, "losses.kl: belongs to the system vfm_vae"),
    ],
)
def test_a_configuration_that_does_not_fit_is_reported_by_its_key(tiny_encoder, changes, message):
    values = tiny_vfmtok_values(tiny_encoder, Path("nowhere"), Path("run"))
    with pytest.raises(UserError) as error:
        check(Source("tiny_vfmtok.yaml", values | changes))
    assert message in str(error.value)


def test_the_last_layer_must_be_among_the_layers(tiny_encoder):
    values = tiny_vfmtok_values(tiny_encoder, Path("nowhere"), Path("run"))
    values["encoder"]["patch_from_layers"] = [-1, 0, 2]
    with pytest.raises(UserError, match=r"encoder.patch_from_layers: found \[-1, 0, 2\], expected -1 at the end"):
        check(Source("tiny_vfmtok.yaml", values))


# --- tokens ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_tokens_and_latent_are_two_forms_of_the_same(model, images):
    latent = model.encode(images)
    tokens = latent.quantized.indices
    assert tokens.shape == (3, 1, 4, 4) and latent.z.shape == (3, 6, 4, 4)
    assert torch.equal(model.tokens_to_latent(tokens), latent.z)
    assert torch.equal(model.latent_to_tokens(latent.z), tokens)
    assert torch.allclose(latent.z.norm(dim=1), torch.ones(3, 4, 4), atol=1e-6)


@torch.no_grad()
def test_tokens_and_images_do_not_depend_on_the_batch(model, images):
    together = model.encode(images).quantized.indices
    alone = torch.cat([model.encode(image[None]).quantized.indices for image in images])
    assert torch.equal(together, alone)
    z = model.tokens_to_latent(together)
    single = torch.cat([model.decode(row[None]).reconstruction for row in z])
    assert torch.allclose(model.decode(z).reconstruction, single, atol=1e-5)


# --- files of the reference ------------------------------------------------------------------------------------------


def reference_state(model, salt: str) -> dict[str, torch.Tensor]:
    """Weights under the reference's names, with what such files hold besides."""
    state = {
        to_reference_name(name, VFMTOK): fill(salt + name, list(value.shape))
        for name, value in model.trainable_parts().state_dict().items()
        if not name.endswith(".usage")
    }
    return state | {"slot_quantize.codebook_used": torch.zeros(65536)}


@pytest.fixture
def reference_file(model, tmp_path):
    path = tmp_path / "vit_vqgan_step_10.pt"
    content = {
        "model": reference_state(model, "raw "),
        "ema": reference_state(model, "ema "),
        "steps": 10,
        "args": argparse.Namespace(vq_model="VQ-16"),
    }
    torch.save(content, path)
    return path


def test_a_file_of_the_reference_gives_its_ema_or_raw_weights(config, model, reference_file):
    for weights in ("ema", "raw"):
        loaded = load_tokenizer(reference_file, config, weights=weights)
        for name, value in loaded.trainable_parts().state_dict().items():
            if not name.endswith(".usage"):
                assert torch.equal(value, fill(f"{weights} {name}", list(value.shape))), name


def test_missing_and_unexpected_entries_of_such_a_file_are_named(config, model, tmp_path):
    state = reference_state(model, "")
    del state["pre_slots_quant.bias"]
    torch.save({"ema": state}, tmp_path / "lacking.pt")
    with pytest.raises(CheckpointError, match=r"do not fit the configuration: 1 missing, e.g. to_code.bias"):
        load_tokenizer(tmp_path / "lacking.pt", config)
    torch.save({"ema": reference_state(model, "") | {"mystery": torch.zeros(1)}}, tmp_path / "strange.pt")
    with pytest.raises(CheckpointError, match="the weight 'mystery' is not of the reference's generator"):
        load_tokenizer(tmp_path / "strange.pt", config)


def test_such_a_file_becomes_a_folder_that_needs_no_configuration(config, model, reference_file, tmp_path, images):
    reference_to_folder(reference_file, tmp_path / "folder", config)
    loaded, expected = load_tokenizer(tmp_path / "folder"), load_tokenizer(reference_file, config)
    assert isinstance(loaded, VFMTokTokenizer) and loaded.config == config
    assert torch.equal(loaded.encode(images).quantized.indices, expected.encode(images).quantized.indices)
    with pytest.raises(CheckpointError, match=r"is a vfmtok; only vfm_vae is written as a \.pth"):
        folder_to_reference(tmp_path / "folder", tmp_path / "back.pth")
