"""Properties of single layers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from networks.equivariance import EquivarianceTransform
from networks.latent import DiagonalGaussian
from networks.layers.attention import CrossAttentionBlock
from networks.layers.convnext import ModulatedConvNeXt
from networks.layers.modulated import modulated_conv
from networks.layers.modulated_conv3x3 import LayerNoise, ModulatedConv3x3
from networks.layers.resample import STYLEGAN_TAPS, separable_kernel, upsample2d


@pytest.mark.parametrize("side", [1, 3])
def test_modulated_convolution_equals_one_convolution_per_sample(side: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(3, 8, 5, 4, generator=generator), torch.randn(6, 8, side, side, generator=generator)
    styles, bias = torch.randn(3, 8, generator=generator), torch.randn(1, 6, 1, 1, generator=generator)
    found = modulated_conv(x, weight, styles, bias)
    for sample, style, image in zip(x, styles, found, strict=True):
        scaled = weight * style[None, :, None, None]
        scaled = scaled * (scaled.square().sum((1, 2, 3), keepdim=True) + 1e-8).rsqrt()
        expected = F.conv2d(sample[None], scaled, padding=side // 2)[0] + bias[0]
        assert torch.allclose(image, expected, atol=1e-5)


def test_fresh_noise_differs_per_sample_and_comes_from_the_generator() -> None:
    torch.manual_seed(0)
    layer = ModulatedConv3x3(8, 8, 4, side=6)
    layer.noise_strength.data.fill_(1.0)
    x, w = torch.randn(1, 8, 6, 6).expand(2, -1, -1, -1), torch.randn(1, 4).expand(2, -1)

    def run(mode: str, seed: int = 0) -> torch.Tensor:
        with torch.no_grad():
            return layer(x, w, LayerNoise(mode, torch.Generator().manual_seed(seed)))

    fixed, none, fresh = run("const"), run("none"), run("random")
    assert torch.equal(fixed[0], fixed[1]) and torch.equal(none[0], none[1])
    assert not torch.allclose(fresh[0], fresh[1], atol=0.1)
    assert torch.equal(fresh, run("random")) and not torch.equal(fresh, run("random", seed=1))
    layer.noise_strength.data.zero_()
    assert torch.equal(run("const"), none) and torch.equal(run("random"), none)


def test_activations_stay_below_the_clamp_times_the_gain() -> None:
    torch.manual_seed(0)
    x, w = 100 * torch.randn(2, 8, 6, 6), torch.randn(2, 4)
    layer = ModulatedConv3x3(8, 8, 4, side=6, gain=0.5, clamp=2)
    assert layer(x, w, LayerNoise()).abs().max() == 1.0
    layer.clamp = None
    assert layer(x, w, LayerNoise()).abs().max() > 10


def test_summed_images_keep_a_flat_image_and_its_mean() -> None:
    flat = upsample2d(torch.ones(1, 3, 4, 4), separable_kernel(STYLEGAN_TAPS))
    assert torch.allclose(flat[:, :, 2:-2, 2:-2], torch.ones(1, 3, 4, 4))
    dot = torch.zeros(1, 1, 8, 8)
    dot[0, 0, 4, 4] = 1.0
    assert torch.isclose(upsample2d(dot, separable_kernel(STYLEGAN_TAPS)).sum(), torch.tensor(4.0))


def cross_attention() -> CrossAttentionBlock:
    torch.manual_seed(0)
    block = CrossAttentionBlock(16, 12, heads=4)
    for weight in (block.attn.to_out.weight, block.ff_out.weight):
        torch.nn.init.normal_(weight)
    return block


def test_masked_tokens_do_not_matter() -> None:
    block, x, context = cross_attention(), torch.randn(2, 16, 3, 3), torch.randn(2, 5, 12)
    mask = torch.tensor([[True, True, False, False, False], [True] * 5])
    other = context.clone()
    other[0, 2:] = torch.randn(3, 12)
    assert torch.equal(block(x, context, mask), block(x, other, mask))
    assert torch.allclose(block(x[:1], context[:1], mask[:1]), block(x[:1], context[:1, :2]), atol=1e-5)
    assert not torch.equal(block(x, context), block(x, other))


def test_a_text_without_tokens_leaves_the_null_token() -> None:
    block, x, context = cross_attention(), torch.randn(1, 16, 3, 3), torch.randn(1, 5, 12)
    found = block(x, context, torch.zeros(1, 5, dtype=torch.bool))
    null = block.attn.null_kv[1].reshape(1, 16, 1, 1).expand(-1, -1, 3, 3)  # all attention on one value
    assert torch.allclose(found, block.feed_forward(x + block.attn.to_out(null)), atol=1e-5)


def test_convnext_layer_equals_its_formula_term_by_term() -> None:
    torch.manual_seed(0)
    layer = ModulatedConvNeXt(16, 8, 5)
    layer.gamma.data.normal_()
    layer.project.bias.data.normal_()
    x, w = torch.randn(2, 16, 6, 6), torch.randn(2, 8)
    h = layer.norm(F.conv2d(x, layer.depthwise.weight, layer.depthwise.bias, padding=2, groups=16))
    h = F.gelu(modulated_conv(h, layer.expand_weight, layer.affine(w), layer.expand_bias))
    expected = x + layer.gamma * layer.project(h)
    assert torch.allclose(layer(x, w), expected, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 3), st.sampled_from([2, 4, 6]), st.sampled_from([2, 4, 6]))
def test_four_quarter_turns_are_the_identity(turns: int, height: int, width: int) -> None:
    z = torch.randn(1, 2, height, width)
    turned = z
    for _ in range(4):
        turned = EquivarianceTransform(1.0, turns).apply_to_latent(turned)
    assert torch.equal(turned, z)


@settings(max_examples=50, deadline=None)
@given(st.floats(-10, 10), st.floats(-10, 10))
def test_kl_is_zero_only_at_the_prior(mean: float, logvar: float) -> None:
    moments = torch.tensor([mean, logvar], dtype=torch.float64).view(1, 2, 1, 1)
    kl = DiagonalGaussian(moments).kl().item()
    assert kl >= 0.0
    if abs(mean) >= 1e-3 or abs(logvar) >= 1e-3:
        assert kl > 0


def test_kl_of_a_batch_equals_that_of_its_items() -> None:
    moments = torch.randn(3, 8, 2, 2)
    together = DiagonalGaussian(moments).kl()
    alone = torch.cat([DiagonalGaussian(m[None]).kl() for m in moments])
    assert torch.allclose(together, alone, rtol=1e-6)
