"""Depthwise convolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from common.precision import full_precision


class DepthwiseConv2d(nn.Conv2d):
    """Convolution of each channel by itself, with padding that keeps the side.

    On the CPU it is computed in fp32 and channels-last whatever the surrounding precision and layout: its weight
    gradient is several times faster so than in bf16 or channel-first (docs/performance.md).
    """

    def __init__(self, channels: int, kernel_size: int, bias: bool = True):
        super().__init__(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return super().forward(x)
        with full_precision(x.device):
            return super().forward(x.float().contiguous(memory_format=torch.channels_last))
