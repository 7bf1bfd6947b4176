"""Multi-codebook quantisation alone and inside a tokenizer."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from common.errors import ShapeError, UserError
from losses.config import EntropyTermConfig, VQTermConfig
from losses.entropy import EntropyLoss, entropy_loss
from losses.vq import VQLoss
from networks.checkpoint import to_own_name, to_reference_name
from networks.config import TokenizerConfig
from networks.encoders.loading import load_encoder
from networks.equivariance import EquivarianceTransform
from networks.quantizer import MultiCodebookQuantizer, usage_percent
from networks.vfm_vae import VFMVAETokenizer
from tests.tiny import DISCRETE, fill_weights, loss_inputs_of, tiny_values
from tests.trainer.conftest import merged


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def quantizer(seed: int = 0, size: int = 6, width: int = 4, codebooks: int = 3) -> MultiCodebookQuantizer:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return MultiCodebookQuantizer(size * codebooks, width * codebooks, codebooks)


# --- alone -------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 999),
    codebooks=st.integers(1, 4),
    size=st.integers(2, 9),
    width=st.integers(2, 5),
    grid=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
)
def test_each_chunk_becomes_the_nearest_code_of_unit_norm(seed, codebooks, size, width, grid, scale) -> None:
    module = quantizer(seed, size, width, codebooks)
    x = scale * torch.randn(2, codebooks * width, *grid, generator=seeded(seed))
    quantized = module(x)
    chunks = quantized.z.unflatten(1, (codebooks, width))
    assert torch.allclose(chunks.norm(dim=2), torch.ones(()), atol=1e-6)
    for k, book in enumerate(module.codebooks):
        cosines = F.cosine_similarity(
            x.unflatten(1, (codebooks, width))[:, k, None], book.codes[..., None, None], dim=2
        )
        chosen = cosines.gather(1, quantized.indices[:, k, None])
        assert (cosines.amax(1, keepdim=True) - chosen).max() <= 1e-6  # nothing is nearer


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), grid=st.tuples(st.integers(1, 4), st.integers(1, 4)))
def test_tokens_to_latent_to_tokens_is_the_identity(seed, grid) -> None:
    module = quantizer(seed)
    tokens = torch.randint(0, 6, (2, 3, *grid), generator=seeded(seed))
    latent = module.tokens_to_latent(tokens)
    assert torch.equal(module.latent_to_tokens(latent), tokens)
    assert torch.equal(module(latent).z, latent)
    for stored in (torch.uint8, torch.uint16, torch.int32):
        assert torch.equal(module.tokens_to_latent(tokens.to(stored)), latent)


def test_the_latent_is_exactly_what_its_tokens_give_and_quantising_it_again_changes_nothing() -> None:
    module = quantizer()
    quantized = module(torch.randn(2, 12, 3, 5, generator=seeded(0)))
    assert torch.equal(module.tokens_to_latent(quantized.indices), quantized.z)
    assert torch.equal(module(quantized.z).z, quantized.z)


def test_the_gradient_goes_straight_through_to_the_inputs_and_not_to_the_codes() -> None:
    module = quantizer()
    x = torch.randn(2, 12, 3, 3, generator=seeded(0)).requires_grad_()
    towards = torch.randn(2, 12, 3, 3, generator=seeded(1))
    (module(x).z * towards).sum().backward()
    normalised = F.normalize(x.unflatten(1, (3, 4)), dim=2).flatten(1, 2)
    (expected,) = torch.autograd.grad((normalised * towards).sum(), x)
    assert torch.allclose(x.grad, expected, atol=1e-6)
    assert all(book.codes.grad is None for book in module.codebooks)


def test_bf16_autocast_changes_no_token() -> None:
    module = quantizer(size=64)
    x = torch.randn(2, 12, 16, 16, generator=seeded(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = module(x)
    assert rounded.z.dtype == torch.float32
    assert torch.equal(rounded.indices, module(x).indices)


@pytest.mark.parametrize("shape", [(1, 2, 4, 4), (1, 3, 16)])
def test_tokens_of_another_shape_are_refused(shape) -> None:
    with pytest.raises(ShapeError, match=r"expected \[B, 3, h, w\]"):
        quantizer().tokens_to_latent(torch.zeros(shape, dtype=torch.int64))


@pytest.mark.parametrize(("token", "found"), [(6, "from 0 to 6"), (-1, "from -1 to 0")])
def test_a_token_without_a_code_is_refused(token, found) -> None:
    tokens = torch.zeros(1, 3, 2, 2, dtype=torch.int64)
    tokens[0, 1, 1, 1] = token
    with pytest.raises(UserError, match=f"found tokens {found}, expected 0 to 5"):
        quantizer().tokens_to_latent(tokens)


# --- usage -------------------------------------------------------------------------------------------------------


def test_usage_copies_the_first_batch_and_then_moves_by_a_tenth_and_from_the_hundredth_on_by_a_hundredth() -> None:
    module = quantizer(size=2, codebooks=2)
    shares = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    module.track_usage(shares, earlier=0)
    assert [book.usage.tolist() for book in module.codebooks] == shares.tolist()
    for earlier, expected in ((1, 0.9), (99, 0.9 * 0.9), (100, 0.99 * 0.81), (5000, 0.99**2 * 0.81)):
        module.track_usage(torch.tensor([[0.0, 1.0], [0.5, 0.5]]), earlier)
        first, second = (book.usage.tolist() for book in module.codebooks)
        assert first == pytest.approx([expected, 1 - expected], abs=1e-6)
        assert second == pytest.approx([0.5, 0.5], abs=1e-6)


def test_shares_are_counted_per_codebook_over_all_ranks(monkeypatch) -> None:
    module = quantizer(size=3, codebooks=2)
    indices = torch.tensor([[[[0, 0, 0, 2]], [[1, 1, 1, 1]]]])
    shares = module.code_shares(indices)
    assert shares.tolist() == [[0.75, 0.0, 0.25], [0.0, 1.0, 0.0]]
    assert usage_percent(shares).item() == pytest.approx(50)
    of_other_rank = torch.tensor([[0.0, 4.0, 0.0], [0.0, 4.0, 0.0]])
    monkeypatch.setattr("networks.quantizer.all_reduce", lambda counts: counts + of_other_rank)
    assert module.code_shares(indices).tolist() == [[0.375, 0.5, 0.125], [0.0, 1.0, 0.0]]


def test_a_code_is_in_use_above_a_hundredth_of_its_even_share() -> None:
    even = 0.01 / 4
    shares = torch.tensor([[1 - 2 * even, 2 * even, 0.0, 0.0], [1 - even / 2, even / 2, 0.0, 0.0]])
    assert usage_percent(shares).item() == 100 * 3 / 8


def test_a_forward_pass_leaves_the_usage_alone() -> None:
    module = quantizer().train()
    module(torch.randn(2, 12, 3, 3, generator=seeded(0)))
    assert all(not book.usage.any() for book in module.codebooks)


# --- losses ------------------------------------------------------------------------------------------------------


def test_vq_loss_commits_inputs_by_beta_and_moves_codes_by_one() -> None:
    module = quantizer()
    x = torch.randn(2, 12, 3, 3, generator=seeded(0)).requires_grad_()
    quantized = module(x)
    gap = (quantized.inputs - quantized.codes).square().mean().item()
    gradients = {}
    for beta in (0.0, 0.25):
        loss = VQLoss(VQTermConfig(weight=1.0, vocab_beta=beta))(loss_inputs_of(quantized))
        assert loss.item() == pytest.approx((1 + beta) * gap, rel=1e-5)
        parameters = [x, module.codebooks[0].codes]
        gradients[beta] = torch.autograd.grad(loss, parameters, retain_graph=True)
    assert gradients[0.0][0].abs().max() == 0
    assert gradients[0.25][0].abs().max() > 0
    assert torch.allclose(gradients[0.0][1], gradients[0.25][1])


def test_entropy_is_lowest_for_sure_and_evenly_used_codes_and_zero_for_one_code() -> None:
    table = torch.eye(4)
    assert entropy_loss(table, table, 0.01).item() == pytest.approx(-torch.tensor(4.0).log().item(), abs=1e-5)
    assert entropy_loss(table[:1].expand(8, 4), table, 0.01).item() == pytest.approx(0, abs=1e-5)


def test_entropy_loss_is_the_mean_over_codebooks() -> None:
    quantized = quantizer()(torch.randn(2, 12, 3, 3, generator=seeded(0)))
    found = EntropyLoss(EntropyTermConfig(weight=1.0, entropy_temp=0.1))(loss_inputs_of(quantized)).item()
    of_each = [entropy_loss(quantized.inputs[:, k].reshape(-1, 4), quantized.tables[k], 0.1) for k in range(3)]
    assert found == pytest.approx(torch.stack(of_each).mean().item(), rel=1e-6)


# --- inside a tokenizer ------------------------------------------------------------------------------------------

VARIANTS = {
    "attention": {},
    "convolution": {"latent.how_to_compress": "conv", "decoder.how_to_decompress": "conv"},
    "one codebook": {"latent.num_codebooks": 1, "latent.vocab_size": 16},
}


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS.keys())
def tokenizer(request, tiny_encoder, tiny_data, tmp_path) -> VFMVAETokenizer:
    """A small discrete tokenizer with filled weights."""
    values = merged(tiny_values(tiny_encoder, tiny_data, tmp_path), {**DISCRETE, **request.param})
    config = TokenizerConfig(
        img_resolution=64, alignment_head=True, **{name: values[name] for name in ("encoder", "latent", "decoder")}
    )
    model = VFMVAETokenizer(config, load_encoder(config.encoder))
    fill_weights(model)
    return model


def test_a_discrete_tokenizer_encodes_decodes_and_trains_every_weight(tokenizer) -> None:
    output = tokenizer(torch.rand(2, 3, 64, 64, generator=seeded(0)))
    latent, books = output.latent, tokenizer.config.latent.num_codebooks
    assert latent.posterior is None
    assert latent.z.shape == (2, *tokenizer.latent_shape(64, 64)) == (2, 8, 8, 8)
    assert latent.quantized.indices.shape == (2, books, 8, 8)
    assert output.decoded.reconstruction.shape == (2, 3, 64, 64)
    images = [output.decoded.reconstruction, *output.decoded.pyramid.values()]
    vq = VQLoss(VQTermConfig(weight=1.0))(loss_inputs_of(latent.quantized))
    (sum(image.square().mean() for image in images) + latent.projected.square().mean() + vq).backward()
    assert all(p.grad is not None for p in tokenizer.trainable_parts().parameters())


def test_names_of_all_weights_translate_both_ways(tokenizer) -> None:
    names = list(tokenizer.state_dict())
    references = [to_reference_name(name, family="siglip2") for name in names]
    assert len(set(references)) == len(names)
    assert [to_own_name(name, family="siglip2") for name in references] == names
    assert "ldm_adapter.quantizer.codebooks.0.codebook.weight" in references
    assert "ldm_adapter.quantizer.codebooks.0.vocab_usage" in references


@torch.no_grad()
def test_an_image_becomes_tokens_that_decode_to_its_reconstruction_whoever_else_is_in_the_batch(tokenizer) -> None:
    images = torch.rand(3, 3, 64, 64, generator=seeded(0))
    latent = tokenizer.encode(images)
    alone = torch.cat([tokenizer.encode(image[None]).quantized.indices for image in images])
    tokens = tokenizer.latent_to_tokens(latent.z)
    assert torch.equal(tokens, latent.quantized.indices)
    assert torch.equal(tokens, alone)
    assert torch.equal(tokenizer.tokens_to_latent(tokens), latent.z)


@torch.no_grad()
def test_equivariance_turns_and_shrinks_the_quantised_latent_or_the_input(tokenizer) -> None:
    images = torch.rand(1, 3, 64, 64, generator=seeded(0))
    on_latent, on_input = EquivarianceTransform(0.5, 1), EquivarianceTransform(0.5, on_input=True)
    output = tokenizer(images, transform=on_latent)
    direct = tokenizer.decode(on_latent.apply_to_latent(tokenizer.encode(images).z))
    assert torch.equal(output.decoded.reconstruction, direct.reconstruction)
    small = tokenizer(images, transform=on_input)
    assert small.latent.quantized.indices.shape[2:] == (4, 4)
    assert small.decoded.reconstruction.shape == (1, 3, 32, 32)


def test_a_continuous_tokenizer_has_no_tokens(tiny_encoder, tiny_data, tmp_path) -> None:
    values = tiny_values(tiny_encoder, tiny_data, tmp_path)
    config = TokenizerConfig(img_resolution=64, **{name: values[name] for name in ("encoder", "latent", "decoder")})
    model = VFMVAETokenizer(config, encoder=None)
    for call in (model.tokens_to_latent, model.latent_to_tokens):
        with pytest.raises(UserError, match=r"latent\.compression_mode is continuous, not discrete"):
            call(torch.zeros(1, 4, 8, 8))
