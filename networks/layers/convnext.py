"""Style-modulated ConvNeXt layer of the decoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from networks.layers.depthwise import DepthwiseConv2d
from networks.layers.linear import StyleAffine
from networks.layers.modulated import modulated_conv
from networks.layers.norm import GroupNorm

EXPANSION = 4


class ModulatedConvNeXt(nn.Module):
    """y = x + gamma * project(GELU(expand_s(GN(depthwise(x))))), with `expand` modulated by styles s of w.

    Args:
        channels: C of input and output.
        w_dim: width of w.
        kernel_size: side of the depthwise kernel.
        noise_side: side of a fixed noise map added after the depthwise convolution (the `legacy` layers of the
            released weights; resized to the feature map, so it depends on no image size), or None.
    """

    def __init__(self, channels: int, w_dim: int, kernel_size: int, noise_side: int | None = None):
        super().__init__()
        hidden = EXPANSION * channels
        self.affine = StyleAffine(w_dim, channels)
        self.depthwise = DepthwiseConv2d(channels, kernel_size)
        self.norm = GroupNorm(min(32, channels // 4), channels)
        self.expand_weight = nn.Parameter(torch.empty(hidden, channels, 1, 1))
        self.expand_bias = nn.Parameter(torch.zeros(1, hidden, 1, 1))
        self.project = nn.Conv2d(hidden, channels, 1)
        self.gamma = nn.Parameter(torch.full((1, channels, 1, 1), 1e-5))
        for weight in (self.depthwise.weight, self.expand_weight, self.project.weight):
            nn.init.trunc_normal_(weight, std=0.02)
        nn.init.zeros_(self.depthwise.bias)
        nn.init.zeros_(self.project.bias)
        self.has_noise = noise_side is not None
        if self.has_noise:
            self.register_buffer("noise", torch.randn(noise_side, noise_side))
            self.noise_strength = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        h = self.depthwise(x)
        if self.has_noise:
            noise = (self.noise * self.noise_strength)[None, None]
            h = h + F.interpolate(noise, size=h.shape[-2:], mode="bilinear", align_corners=False)
        h = self.norm(h)
        h = modulated_conv(h, self.expand_weight, self.affine(w), self.expand_bias)
        # gamma (W h + b) = (gamma W) h + gamma b: multiplied on the weights, which are smaller than the map.
        scale = self.gamma.flatten()
        return x + F.conv2d(F.gelu(h), self.project.weight * scale[:, None, None, None], self.project.bias * scale)
