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


def latent_branch_width(n_in: int, mapped: int | None, factor: int, shrinks: bool, process: str) -> int:
    """Channels that a branch adds to its block: the configured width, else the latent's own."""
    if mapped is not None:
        return mapped
    return n_in * factor**2 if shrinks and process == "unshuffle" else n_in


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
        width = latent_branch_width(n_in, mapped, factor, True, process)
        if process == "pooling":
            return nn.Sequential(nn.AvgPool2d(factor), _conv3(n_in, width, activation), _conv1(width)), width
        return (
            nn.Sequential(nn.PixelUnshuffle(factor), _conv3(n_in * factor**2, width, activation), _conv1(width)),
            width,
        )
    factor = block_input_side // latent_side
    width = latent_branch_width(n_in, mapped, factor, False, process)
    if factor == 1:
        return nn.Sequential(_conv3(n_in, width, activation), _conv1(width)), width
    return (
        nn.Sequential(_conv3(n_in, width * factor**2, activation), nn.PixelShuffle(factor), _conv1(width)),
        width,
    )
