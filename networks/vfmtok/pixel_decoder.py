"""The convolutional decoder of VQGAN (arXiv 2012.09841), as LlamaGen and VFMTok have it: a map -> pixels."""

from __future__ import annotations

import itertools

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from networks.layers.dot_product_attention import attend
from networks.vfmtok.config import GROUPS, PixelDecoderConfig


def group_norm(channels: int) -> nn.GroupNorm:
    """The decoder's normalisation."""
    return nn.GroupNorm(GROUPS, channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """x + two 3x3 convolutions, each after group norm and swish; a 1x1 convolution where the width changes."""

    def __init__(self, n_in: int, n_out: int, dropout: float):
        super().__init__()
        self.norm1 = group_norm(n_in)
        self.conv1 = nn.Conv2d(n_in, n_out, 3, padding=1)
        self.norm2 = group_norm(n_out)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1)
        self.shortcut = nn.Conv2d(n_in, n_out, 1) if n_in != n_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return self.shortcut(x) + h


class SpatialAttention(nn.Module):
    """x + single-head attention over all positions of a map."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = group_norm(channels)
        self.query = nn.Conv2d(channels, channels, 1)
        self.key = nn.Conv2d(channels, channels, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.output = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (rearrange(layer(h), "b c h w -> b 1 (h w) c") for layer in (self.query, self.key, self.value))
        attended = rearrange(attend(q, k, v), "b 1 (h w) c -> b c h w", h=x.shape[2])
        return x + self.output(attended.to(x.dtype))


class Stage(nn.Module):
    """Residual blocks at one resolution, then, except at the last one, twice that resolution."""

    def __init__(self, n_in: int, n_out: int, num_res_blocks: int, dropout: float, upsample: bool):
        super().__init__()
        widths = [n_in, *[n_out] * (num_res_blocks + 1)]
        self.blocks = nn.ModuleList(ResidualBlock(a, b, dropout) for a, b in itertools.pairwise(widths))
        self.upsample = nn.Conv2d(n_out, n_out, 3, padding=1) if upsample else None

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        if self.upsample is None:
            return x
        return self.upsample(F.interpolate(x, scale_factor=2, mode="nearest"))


class PixelDecoder(nn.Module):
    """A map [B, D, h, w] -> images [B, 3, f h, f w], nominally in [-1, 1], not clamped.

    Args:
        config: its shape; f is its `factor`.
        width: D.
    """

    def __init__(self, config: PixelDecoderConfig, width: int):
        super().__init__()
        widths = [config.channels * multiplier for multiplier in reversed(config.multipliers)]  # from low to full
        lowest, dropout = widths[0], config.dropout
        self.conv_in = nn.Conv2d(width, lowest, 3, padding=1)
        self.middle = nn.Sequential(
            ResidualBlock(lowest, lowest, dropout), SpatialAttention(lowest), ResidualBlock(lowest, lowest, dropout)
        )
        self.stages = nn.ModuleList(
            Stage(n_in, n_out, config.num_res_blocks, dropout, upsample=number < len(widths))
            for number, (n_in, n_out) in enumerate(zip([lowest, *widths[:-1]], widths), start=1)
        )
        self.norm_out = group_norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(self.conv_in(x))
        for stage in self.stages:
            x = stage(x)
        return self.conv_out(F.silu(self.norm_out(x)))
