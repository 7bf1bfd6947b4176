"""RGB layer of the decoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from networks.layers.linear import StyleAffine
from networks.layers.modulated import modulated_conv


class ToRGB(nn.Module):
    """Modulated 1x1 convolution without demodulation: features [B, C, H, W] -> image [B, 3, H, W] in fp32."""

    def __init__(self, channels: int, w_dim: int):
        super().__init__()
        self.affine = StyleAffine(w_dim, channels)
        self.weight = nn.Parameter(0.1 * torch.randn(3, channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(1, 3, 1, 1))
        self.style_gain = channels**-0.5

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        styles = self.affine(w) * self.style_gain
        return modulated_conv(x, self.weight, styles, demodulate=False).float() + self.bias.view(-1, 1, 1)


class ClampedToRGB(ToRGB):
    """RGB layer of the blocks without ConvNeXt layers: its image is clamped to [-clamp, clamp]."""

    def __init__(self, channels: int, w_dim: int, clamp: float | None):
        super().__init__(channels, w_dim)
        self.bias = nn.Parameter(torch.zeros(3))
        self.clamp = clamp

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        image = super().forward(x, w)
        return image if self.clamp is None else image.clamp(-self.clamp, self.clamp)
