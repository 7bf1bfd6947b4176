"""VFMTok as users meet it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from common.config import Source
from common.errors import CheckpointError, ShapeError, UserError
from configs.schema import check
from networks import VFMVAE, VFMTok
from networks.encoders.loading import load_encoder
from networks.export import export_decoder
from networks.vfmtok.tokenizer import VFMTokTokenizer
from tests.tiny import tiny_vfmtok_values


@pytest.fixture(scope="module")
def model(tiny_encoder):
    values = tiny_vfmtok_values(tiny_encoder, Path("nowhere"), Path("run"))
    config = check(Source("tiny_vfmtok.yaml", values)).config.tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return VFMTok(VFMTokTokenizer(config, load_encoder(config.encoder)))


@pytest.fixture
def images():
    return 2 * torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) - 1


@torch.no_grad()
def test_images_become_tokens_and_tokens_the_same_images_as_their_codes(model, images):
    encoded = model.encode(images)
    assert encoded.tokens.shape == (3, 1, 4, 4) and encoded.tokens.dtype == torch.int64
    assert torch.equal(encoded.tokens, model.tokenizer.encode((images + 1) / 2).quantized.indices)
    reconstruction = model(images).sample
    assert reconstruction.shape == images.shape
    assert torch.equal(model.decode_tokens(encoded.tokens).sample, reconstruction)


@torch.no_grad()
def test_slices_change_nothing(model, images):
    whole = model.encode(images).tokens
    model.enable_slicing(2)
    assert torch.equal(model.encode(images).tokens, whole)
    model.disable_slicing()


@torch.no_grad()
def test_a_saved_model_is_the_same_and_says_what_it_is(model, images, tmp_path):
    model.save_pretrained(tmp_path / "saved", licence="apache-2.0")
    loaded = VFMTok.from_pretrained(tmp_path / "saved")
    assert torch.equal(loaded(images).sample, model(images).sample)
    card = (tmp_path / "saved/README.md").read_text(encoding="utf-8")
    assert "# VFMTok on tiny-siglip2-patch8-32" in card and "16 tokens of 48 codes. It takes 32 x 32 pixels" in card
    with pytest.raises(CheckpointError, match="is a vfmtok, not a vfm_vae; load it with the class for those"):
        VFMVAE.from_pretrained(tmp_path / "saved")


def test_a_picture_of_any_size_is_brought_to_the_model(model):
    pixels = model.preprocess(Image.new("L", (50, 20), 255))
    assert pixels.shape == (1, 3, 32, 32) and torch.allclose(pixels, torch.ones(1, 3, 32, 32), atol=1e-6)


def test_integers_and_other_sizes_are_refused(model):
    with pytest.raises(UserError, match=r"images: found torch\.uint8, expected floating point in \[-1, 1\]"):
        model.encode(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(ShapeError, match="takes 32 x 32 only"):
        model.encode(torch.zeros(1, 3, 64, 64))


@torch.no_grad()
def test_the_exported_decoder_gives_the_same_images(model):
    program = export_decoder(model.tokenizer, 32, 32).module()
    for batch in (1, 3):
        z = torch.randn(batch, 6, 4, 4, generator=torch.Generator().manual_seed(batch))
        assert torch.allclose(program(z), model.decode(z).sample, atol=1e-6)
