"""The tokenizer as a whole: sizes, names, gradients, behaviour under modes."""

from __future__ import annotations

import pytest
import torch

from common.errors import CheckpointError, ShapeError, UserError
from configs.schema import load_config
from networks.checkpoint import load_weights, to_own_name, to_reference_name
from networks.config import TokenizerConfig
from networks.encoders.loading import load_encoder
from networks.equivariance import EquivarianceTransform
from networks.vfm_vae import VFMVAETokenizer
from tests.tiny import fill_weights, tiny_values

PUBLISHED = "configs/vfm_vae_f16d32_siglip2_stage_{}.yaml"


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("stage", ["0_strong_alignment", "1_weak_alignment"])
@pytest.mark.parametrize(("legacy", "expected"), [(True, 139_770_680), (False, 139_770_642)])
def test_published_model_has_the_published_number_of_parameters(stage: str, legacy: bool, expected: int) -> None:
    config = load_config(PUBLISHED.format(stage), [f"decoder.legacy={str(legacy).lower()}"]).config
    with torch.device("meta"):
        model = VFMVAETokenizer(config.tokenizer(), encoder=None)
    assert count(model) == expected


@pytest.fixture
def tiny_config(tiny_encoder, tiny_data, tmp_path) -> TokenizerConfig:
    values = tiny_values(tiny_encoder, tiny_data, tmp_path)
    return TokenizerConfig(
        img_resolution=64, alignment_head=True, **{name: values[name] for name in ("encoder", "latent", "decoder")}
    )


@pytest.fixture
def tiny_tokenizer(tiny_config) -> VFMVAETokenizer:
    """The tiny tokenizer with filled weights, so that nothing is zero that could hide a mistake."""
    model = VFMVAETokenizer(tiny_config, load_encoder(tiny_config.encoder))
    fill_weights(model)
    return model


def test_names_of_all_weights_translate_both_ways(tiny_tokenizer) -> None:
    names = list(tiny_tokenizer.state_dict())
    references = [to_reference_name(name, family="siglip2") for name in names]
    assert len(set(references)) == len(names)
    assert [to_own_name(name, family="siglip2") for name in references] == names


def test_images_of_all_resolutions_have_their_sizes(tiny_tokenizer) -> None:
    output = tiny_tokenizer(torch.rand(2, 3, 64, 64), torch.Generator().manual_seed(0))
    assert output.latent.z.shape == (2, *tiny_tokenizer.latent_shape(64, 64)) == (2, 4, 8, 8)
    assert output.decoded.reconstruction.shape == (2, 3, 64, 64)
    assert {side: tuple(image.shape[2:]) for side, image in output.decoded.pyramid.items()} == {
        8: (8, 8),
        16: (16, 16),
        32: (32, 32),
    }


def test_encoding_does_not_depend_on_who_else_is_in_the_batch(tiny_tokenizer) -> None:
    images = torch.rand(3, 3, 64, 64)
    with torch.no_grad():
        together = tiny_tokenizer.encode(images).posterior.moments
        alone = torch.cat([tiny_tokenizer.encode(image[None]).posterior.moments for image in images])
    assert (together - alone).abs().max() <= 1e-5 * together.abs().max()


def test_noise_of_the_posterior_comes_from_the_generator(tiny_tokenizer) -> None:
    images = torch.rand(1, 3, 64, 64)
    first, again, other = (tiny_tokenizer.encode(images, torch.Generator().manual_seed(seed)).z for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("turns", [0, 1, 3])
def test_latent_transform_gives_a_smaller_turned_image(tiny_tokenizer, turns: int) -> None:
    transform = EquivarianceTransform(0.5, turns)
    with torch.no_grad():
        output = tiny_tokenizer(torch.rand(1, 3, 64, 64), torch.Generator().manual_seed(0), transform)
        direct = tiny_tokenizer.decode(transform.apply_to_latent(output.latent.z))
    assert output.decoded.reconstruction.shape == (1, 3, 32, 32)
    assert torch.equal(output.decoded.reconstruction, direct.reconstruction)


def test_encoder_is_frozen_and_stays_in_eval_mode(tiny_tokenizer) -> None:
    tiny_tokenizer.train()
    assert not tiny_tokenizer.encoder.training
    assert not tiny_tokenizer.encoder.backbone.training
    assert not any(p.requires_grad for p in tiny_tokenizer.encoder.parameters())


def test_running_mean_of_styles_moves_only_when_asked(tiny_tokenizer) -> None:
    images = torch.rand(2, 3, 64, 64)
    before = tiny_tokenizer.decoder.mapping.x_avg.clone()
    tiny_tokenizer.train()(images, torch.Generator().manual_seed(0))
    assert torch.equal(tiny_tokenizer.decoder.mapping.x_avg, before)
    tiny_tokenizer(images, torch.Generator().manual_seed(0), update_average=True)
    assert not torch.equal(tiny_tokenizer.decoder.mapping.x_avg, before)


def test_bf16_autocast_stays_close_to_fp32(tiny_tokenizer) -> None:
    z = torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        exact = tiny_tokenizer.decode(z).reconstruction
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = tiny_tokenizer.decode(z).reconstruction
    assert rounded.dtype == torch.float32
    assert (exact - rounded).norm() / exact.norm() < 0.05


def test_an_encoder_refuses_pixels_that_its_patches_do_not_divide(tiny_tokenizer) -> None:
    with pytest.raises(ShapeError, match="132 x 132 pixels, expected multiples of its patch size 8"):
        tiny_tokenizer.encoder(torch.rand(1, 3, 66, 66))


def test_a_latent_that_does_not_fit_the_branches_is_refused_with_the_multiple(tiny_tokenizer) -> None:
    with pytest.raises(ShapeError, match=r"latent of 3 x 4 .* multiples of 2"):
        tiny_tokenizer.decode(torch.randn(1, 4, 3, 4))


def test_wrong_layer_widths_are_refused_with_the_right_ones(tiny_config) -> None:
    wrong = tiny_config.encoder.model_copy(update={"patch_in_dimensions": [32, 64, 32]})
    with pytest.raises(UserError, match=r"found \[32, 64, 32\].*\[32, 32, 32\] channels"):
        load_encoder(wrong)


def test_a_layer_that_does_not_exist_is_refused(tiny_config) -> None:
    wrong = tiny_config.encoder.model_copy(update={"patch_from_layers": [0, 7, -1]})
    with pytest.raises(UserError, match="layer 7 does not exist; this encoder has 3 blocks"):
        load_encoder(wrong)


def test_an_encoder_that_lacks_weights_is_refused(tiny_encoder, tiny_config, tmp_path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny_encoder, tmp_path / "tiny-siglip2-patch8-32")
    weights = load_file(folder / "model.safetensors")
    lost = next(name for name in weights if "layers.1" in name)
    save_file({k: v for k, v in weights.items() if k != lost}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="lacks 1 weights of SiglipVisionModel"):
        load_encoder(tiny_config.encoder.model_copy(update={"vfm_name": str(folder)}))


def test_weights_that_do_not_fit_are_named(tiny_tokenizer) -> None:
    state = dict(tiny_tokenizer.trainable_parts().state_dict())
    del state["decoder.blocks.0.to_rgb.bias"]
    state["decoder.blocks.1.to_rgb.bias"] = torch.zeros(4)
    state["decoder.extra"] = torch.zeros(1)
    with pytest.raises(CheckpointError) as error:
        load_weights(tiny_tokenizer, state, "file")
    assert "1 missing, e.g. decoder.blocks.0.to_rgb.bias" in str(error.value)
    assert "1 unexpected, e.g. decoder.extra" in str(error.value)
    assert "decoder.blocks.1.to_rgb.bias is [4], expected [1, 3, 1, 1]" in str(error.value)


def test_upper_blocks_in_fp16_give_nearly_the_same_images(tiny_encoder, tiny_data, tmp_path) -> None:
    values = tiny_values(tiny_encoder, tiny_data, tmp_path)
    values["decoder"]["legacy"] = False
    config = TokenizerConfig(img_resolution=64, **{name: values[name] for name in ("encoder", "latent", "decoder")})
    model = VFMVAETokenizer(config, encoder=None).eval()
    fill_weights(model)
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact = model.decode(z)
        model.decoder.fp16_blocks = 2
        found = model.decode(z)
    assert found.reconstruction.dtype == torch.float32
    assert torch.equal(found.pyramid[16], exact.pyramid[16])
    for one, two in ((found.reconstruction, exact.reconstruction), (found.pyramid[32], exact.pyramid[32])):
        assert 0 < (one - two).abs().max() <= 1e-2 * two.abs().max()
