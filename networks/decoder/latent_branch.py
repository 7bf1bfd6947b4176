"""Latent branches of the decoder: the expanded latent, brought to the side at which a block takes it in."""

from __future__ import annotations

from torch import nn

from networks.layers.depthwise import DepthwiseConv2d
from networks.layers.norm import GroupNorm

ACTIVATIONS = {"lrelu": lambda: nn.LeakyReLU(0.2), "silu": nn.SiLU, "gelu": nn.GELU}


def _conv3(n_in: int, n_out: int, activation: str) -> nn.Sequential:
    return nn.Sequential(
        DepthwiseConv2d(n_in, 3, bias=False),
        nn.Conv2d(n_in, n_out, 1, bias=False),
        GroupNorm(min(32, n_out), n_out),
        ACTIVATIONS[activation](),
    )


def _conv1(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), GroupNorm(min(32, channels), channels))


def latent_branch(
    n_in: int, mapped: int | None, block_input_side: int, latent_side: int, activation: str, process: str
) -> tuple[nn.Sequential, int]:
    """A branch (paper: multi-scale latent fusion, decoder side) and the number of channels that it gives.

    Args:
        n_in: channels of the expanded latent.
        mapped: width of the branch, or None for its natural width.
        block_input_side, latent_side: the sides that the branch connects, at the nominal resolution.
        activation: `lrelu`, `silu` or `gelu`.
        process: how a side below the latent's is reached: `unshuffle` (space to depth) or average `pooling`.
    """
    if block_input_side < latent_side:
        factor = latent_side // block_input_side
        shrink = nn.AvgPool2d(factor) if process == "pooling" else nn.PixelUnshuffle(factor)
        shrunk = n_in if process == "pooling" else n_in * factor**2
        width = mapped or n_in * factor**2
        return nn.Sequential(shrink, _conv3(shrunk, width, activation), _conv1(width)), width
    width = mapped or n_in
    factor = block_input_side // latent_side
    if factor == 1:
        return nn.Sequential(_conv3(n_in, width, activation), _conv1(width)), width
    return nn.Sequential(_conv3(n_in, width * factor**2, activation), nn.PixelShuffle(factor), _conv1(width)), width
