"""Labels of a conditional decoder, and the text model that embeds them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from common.errors import ShapeError, UserError
from networks.conditioning import TextCache
from networks.encoders.loading import load_encoder
from networks.encoders.text import TextEncoder
from networks.interfaces import Conditioning
from networks.vfm_vae import VFMVAETokenizer
from tests.networks.test_variants import NO_CONVNEXT, VARIANTS, variant_config
from tests.tiny import fill_weights

TEXTS = ["a red fox", "crane"]


def tokenizer_of(changes: dict, folder: Path) -> VFMVAETokenizer:
    config = variant_config(changes, folder)
    model = VFMVAETokenizer(config, load_encoder(config.encoder, config.decoder.reads_texts))
    fill_weights(model)
    return model.eval()


@pytest.fixture(scope="module")
def by_class(tiny_text_encoder) -> VFMVAETokenizer:
    return tokenizer_of(VARIANTS["class indices"], tiny_text_encoder)


@pytest.fixture(scope="module")
def by_text(tiny_text_encoder) -> VFMVAETokenizer:
    return tokenizer_of(VARIANTS["cross-attention"], tiny_text_encoder)


@pytest.fixture(scope="module")
def unconditional(tiny_text_encoder) -> VFMVAETokenizer:
    return tokenizer_of({}, tiny_text_encoder)


def z_of(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(0))


# --- what a label does -----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_label_changes_the_image_and_only_its_own(by_class, by_text) -> None:
    classes = torch.eye(3)
    for model, c, other in (
        (by_class, classes[[0, 1]], classes[[0, 2]]),
        (by_text, TEXTS, ["a red fox", "a blue whale"]),
    ):
        first, second = (model.decode(z_of(), labels).reconstruction for labels in (c, other))
        assert (first[1] - second[1]).abs().max() > 1e-3
        assert (first[0] - second[0]).abs().max() <= 1e-5 * first.abs().max()


@torch.no_grad()
def test_truncation_moves_the_learned_style_and_leaves_the_text(by_text, by_class) -> None:
    width = by_text.encoder.text_encoder.width
    pooled = torch.randn(2, by_text.decoder.mapping.mlp[0].weight.shape[1])
    label = by_text.condition(TEXTS, 2).label
    w = by_text.decoder.mapping(pooled, label, truncation_psi=0.0)
    assert torch.allclose(w[:, :-width], by_text.decoder.mapping.x_avg.expand(2, -1))
    assert torch.allclose(w[:, -width:], label / label.norm(dim=1, keepdim=True), atol=1e-6)
    mean = by_class.decode(z_of(), torch.eye(3)[:2], truncation_psi=0.0).reconstruction
    other = by_class.decode(z_of(), torch.eye(3)[1:], truncation_psi=0.0).reconstruction
    assert torch.equal(mean, other)  # the class acts through the style alone


@torch.no_grad()
def test_forward_takes_labels_as_decode_does(by_text) -> None:
    images = torch.rand(2, 3, 64, 64)
    output = by_text(images, torch.Generator().manual_seed(0), c=TEXTS)
    assert torch.equal(output.decoded.reconstruction, by_text.decode(output.latent.z, TEXTS).reconstruction)


# --- labels that do not fit ------------------------------------------------------------------------------------------


def test_a_label_for_an_unconditional_decoder_is_refused(unconditional) -> None:
    with pytest.raises(UserError, match=r"c: found labels, but this decoder is unconditional"):
        unconditional.decode(z_of(), torch.eye(3)[:2])


def test_a_missing_label_is_asked_for(by_class, by_text) -> None:
    with pytest.raises(UserError, match=r"c: missing, .* \(label_type cls2id\); give one-hot classes \[B, 3\]"):
        by_class.decode(z_of())
    with pytest.raises(UserError, match=r"c: missing, .* \(label_type cls2text\); give a list of texts"):
        by_text(torch.rand(2, 3, 64, 64))


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        (torch.eye(3), r"shape \[3, 3\]"),
        (torch.eye(4)[:2], r"shape \[2, 4\]"),
        (torch.tensor([0, 1]), r"shape \[2\]"),
        (TEXTS, "list"),
        (Conditioning(torch.eye(3)), "3 labels"),
    ],
)
def test_classes_that_do_not_fit_are_refused(by_class, labels, found: str) -> None:
    with pytest.raises(ShapeError, match=rf"c: found {found} for 2 latents; expected one-hot classes \[B, 3\]"):
        by_class.decode(z_of(), labels)


@pytest.mark.parametrize(
    ("labels", "found"), [("crane", "str"), (["crane"], "1 texts"), ([0, 1], "list"), (torch.eye(3)[:2], "Tensor")]
)
def test_texts_that_do_not_fit_are_refused(by_text, labels, found: str) -> None:
    with pytest.raises(ShapeError, match=f"c: found {found} for 2 latents; expected a list of texts, one per latent"):
        by_text.decode(z_of(), labels)


def test_embeddings_without_tokens_are_refused_by_cross_attention(by_text) -> None:
    with pytest.raises(ShapeError, match=r"c: found no tokens .*cross-attention"):
        by_text.decode(z_of(), Conditioning(torch.randn(2, 24)))


# --- noise and resolution of the decoder without ConvNeXt layers ------------------------------------------------------


@pytest.fixture(scope="module")
def without_convnext(tiny_text_encoder) -> VFMVAETokenizer:
    return tokenizer_of(NO_CONVNEXT, tiny_text_encoder)


@torch.no_grad()
def test_noise_of_a_decoder_without_convnext_layers_can_be_chosen(without_convnext, unconditional) -> None:
    def decode(mode: str, seed: int = 0) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return without_convnext.decode(z_of(), noise_mode=mode, generator=generator).reconstruction

    assert torch.equal(decode("const"), without_convnext.decode(z_of()).reconstruction)
    assert torch.equal(decode("random"), decode("random"))
    images = [decode("const"), decode("none"), decode("random"), decode("random", seed=1)]
    assert all(not torch.equal(a, b) for i, a in enumerate(images) for b in images[:i])
    with pytest.raises(UserError, match=r"noise_mode: found 'none', but a decoder of ConvNeXt layers has only"):
        unconditional.decode(z_of(), noise_mode="none")


@torch.no_grad()
def test_bf16_autocast_stays_close_to_fp32_without_convnext_layers(tiny_text_encoder) -> None:
    model = tokenizer_of(VARIANTS["no ConvNeXt, summed images"], tiny_text_encoder)
    exact = model.decode(z_of()).reconstruction
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model.decode(z_of()).reconstruction
    assert rounded.dtype == torch.float32
    assert (exact - rounded).norm() / exact.norm() < 0.05


def test_another_resolution_is_refused_without_convnext_layers(without_convnext) -> None:
    with pytest.raises(ShapeError, match=r"latent of 8 x 12 cannot be decoded; expected 8 x 8: the noise maps"):
        without_convnext.decode(torch.randn(1, 4, 8, 12))


# --- the text model --------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_embeddings_are_those_of_the_library(tiny_text_encoder, by_text) -> None:
    from transformers import AutoTokenizer, SiglipModel

    tokens = AutoTokenizer.from_pretrained(tiny_text_encoder)(
        TEXTS, padding="max_length", max_length=64, return_attention_mask=True, return_tensors="pt"
    )
    output = SiglipModel.from_pretrained(tiny_text_encoder).text_model(
        input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
    )
    found = by_text.condition(TEXTS, 2)
    assert torch.allclose(found.label, output.pooler_output, atol=1e-6)
    assert torch.allclose(found.tokens, output.last_hidden_state, atol=1e-6)
    assert found.mask.sum(dim=1).tolist() == [3, 1]


def test_long_texts_are_cut(by_text) -> None:
    assert by_text.encoder.text_encoder(["fox " * 100]).tokens.shape == (1, 64, 24)


def test_the_text_model_is_frozen_and_stays_in_eval_mode(by_text) -> None:
    by_text.train()
    assert not any(part.training for part in by_text.encoder.modules())
    assert not any(p.requires_grad for p in by_text.encoder.text_encoder.parameters())
    assert not any("text_encoder" in name for name in by_text.trainable_parts().state_dict())
    by_text.eval()


def test_a_text_is_embedded_once_and_alone(by_text) -> None:
    batches = []

    class Counting(TextEncoder):
        def forward(self, texts):
            batches.append(list(texts))
            return super().forward(texts)

    text_encoder = by_text.encoder.text_encoder
    cache = TextCache(Counting(text_encoder.backbone, text_encoder.tokenizer), with_tokens=True)
    first, second = cache(["crane", "a red fox", "crane"]), cache(["a red fox"])
    assert batches == [["crane"], ["a red fox"]]
    assert torch.equal(first.label[1], second.label[0])
    assert torch.equal(first.tokens[0], first.tokens[2])
    assert first.mask.shape == (3, 64)
    assert TextCache(text_encoder, with_tokens=False)(["crane"]).tokens is None


def test_a_text_model_with_missing_weights_is_refused(tiny_text_encoder, tmp_path) -> None:
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny_text_encoder, tmp_path / "siglip2-patch8")
    weights = load_file(folder / "model.safetensors")
    del weights["text_model.final_layer_norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = variant_config(VARIANTS["class texts"], folder)
    load_encoder(config.encoder)
    with pytest.raises(UserError, match=r"lacks 1 weights of SiglipTextModel, e\.g\. final_layer_norm\.weight"):
        load_encoder(config.encoder, with_text=True)


def test_a_model_without_a_text_tokenizer_is_refused(tiny_text_encoder, tmp_path) -> None:
    folder = shutil.copytree(tiny_text_encoder, tmp_path / "siglip2-patch8", ignore=shutil.ignore_patterns("token*"))
    config = variant_config(VARIANTS["class texts"], folder)
    with pytest.raises(UserError, match=r"siglip2-patch8' has no tokenizer_config\.json, and a decoder conditional on"):
        load_encoder(config.encoder, with_text=True)
    (folder / "tokenizer_config.json").write_text("{broken")
    with pytest.raises(UserError, match=r"text tokenizer of '.*siglip2-patch8', .* could not be loaded \("):
        load_encoder(config.encoder, with_text=True)


def test_a_decoder_that_reads_texts_needs_a_text_model(tiny_encoder) -> None:
    config = variant_config(VARIANTS["class texts"], tiny_encoder)
    with pytest.raises(UserError, match=r"decoder\.conditional: true with texts needs the text model"):
        VFMVAETokenizer(config, load_encoder(config.encoder))
