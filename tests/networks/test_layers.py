"""Properties of single layers."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from networks.equivariance import EquivarianceTransform
from networks.latent import DiagonalGaussian
from networks.layers.convnext import ModulatedConvNeXt
from networks.layers.modulated import modulated_conv1x1


def test_modulated_convolution_equals_one_convolution_per_sample() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(3, 8, 5, 4, generator=generator), torch.randn(6, 8, 1, 1, generator=generator)
    styles, bias = torch.randn(3, 8, generator=generator), torch.randn(1, 6, 1, 1, generator=generator)
    found = modulated_conv1x1(x, weight, styles, bias)
    for sample, style, image in zip(x, styles, found, strict=True):
        scaled = weight * style[None, :, None, None]
        scaled = scaled * (scaled.square().sum(1, keepdim=True) + 1e-8).rsqrt()
        assert torch.allclose(image, F.conv2d(sample[None], scaled)[0] + bias[0], atol=1e-5)


def test_convnext_layer_equals_its_formula_term_by_term() -> None:
    torch.manual_seed(0)
    layer = ModulatedConvNeXt(16, 8, 5)
    layer.gamma.data.normal_()
    layer.project.bias.data.normal_()
    x, w = torch.randn(2, 16, 6, 6), torch.randn(2, 8)
    h = layer.norm(F.conv2d(x, layer.depthwise.weight, layer.depthwise.bias, padding=2, groups=16))
    h = F.gelu(modulated_conv1x1(h, layer.expand_weight, layer.affine(w), layer.expand_bias))
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
