"""Features of target encoders, against whole forward passes of the libraries."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import ShapeError, UserError
from networks.diffusion.target_features import load_target_encoders, require_fit
from tests.networks.tiny_encoders import TINY

SIDE = 5  # tokens per side, where the encoders have position tables of 4
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


@pytest.fixture
def images() -> Tensor:
    return torch.randint(0, 256, (2, 3, 48, 48), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.fixture
def folder(tmp_path):
    def save(family: str):
        TINY[family].save(tmp_path / family)
        return str(tmp_path / family)

    return save


def resized(images: Tensor) -> Tensor:
    """Normalised first, then resized to 8 pixels per token, without antialiasing."""
    return F.interpolate((images / 255 - MEAN) / STD, size=(8 * SIDE, 8 * SIDE), mode="bicubic")


@pytest.mark.parametrize(("family", "registers"), [("dinov2", 0), ("dinov2 with registers", 4)])
def test_tokens_are_those_of_dinov2_with_its_positions_resampled_once(family, registers, folder, images):
    import transformers

    path = folder(family)
    found = load_target_encoders([path], SIDE)(images)
    model = transformers.AutoModel.from_pretrained(path).eval()
    table = resample_abs_pos_embed(model.embeddings.position_embeddings.detach(), [SIDE, SIDE])
    model.embeddings.position_embeddings = nn.Parameter(table)
    with torch.no_grad():
        expected = model(resized(images)).last_hidden_state
    (tokens,) = found.tokens
    assert tokens.shape == (2, 1 + SIDE**2, 32) and tokens.dtype == torch.float32
    torch.testing.assert_close(tokens[:, 0], expected[:, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(tokens[:, 1:], expected[:, 1 + registers :], atol=1e-5, rtol=0)
    assert torch.equal(found.class_token, tokens[:, 0])


def test_tokens_of_a_timm_model_are_those_of_the_model_built_for_the_grid(folder, images):
    path = folder("timm")
    (tokens,) = load_target_encoders([path], SIDE)(images).tokens
    options = {"pretrained": True, "img_size": 8 * SIDE}
    model = timm.create_model(f"local-dir:{path}", **options).eval()
    mean, std = (torch.tensor(model.pretrained_cfg[name]).view(3, 1, 1) for name in ("mean", "std"))
    pixels = F.interpolate((images / 255 - mean) / std, size=(8 * SIDE, 8 * SIDE), mode="bicubic")
    with torch.no_grad():
        torch.testing.assert_close(tokens, model.forward_features(pixels), atol=1e-5, rtol=0)


def test_several_encoders_give_the_class_token_of_the_last(folder, images):
    encoders = load_target_encoders([folder("mae"), folder("dinov2")], SIDE)
    found = encoders(images)
    assert encoders.widths == [32, 32] and len(found.tokens) == 2
    assert torch.equal(found.class_token, found.tokens[1][:, 0])
    require_fit([32, 32], encoders.widths)
    with pytest.raises(UserError, match=r"z_dims: found \[32\], but the target encoders have \[32, 32\] channels"):
        require_fit([32], encoders.widths)


def test_encoders_stay_frozen_and_in_eval_mode(folder):
    encoders = load_target_encoders([folder("dinov2")], SIDE).train()
    assert not any(module.training for module in encoders.modules())
    assert not any(parameter.requires_grad for parameter in encoders.parameters())


def test_encoder_without_a_class_token_is_refused(folder):
    with pytest.raises(UserError, match=r"siglip2': has no class token, which REG denoises"):
        load_target_encoders([folder("siglip2")], SIDE)


@pytest.mark.parametrize("wrong", [torch.zeros(2, 3, 48, 48), torch.zeros(2, 3, 48, 32, dtype=torch.uint8)])
def test_anything_but_square_8_bit_images_is_refused(wrong, folder):
    with pytest.raises(ShapeError, match=r"expected uint8 \[B, 3, S, S\]"):
        load_target_encoders([folder("dinov2")], SIDE)(wrong)
