"""Tokens and maps: the same features as a row-major list of positions, or as an image of channels."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor


def tokens_to_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """[B, h*w, D] row-major tokens -> [B, D, h, w]."""
    return rearrange(tokens, "b (h w) d -> b d h w", h=grid[0])


def map_to_tokens(x: Tensor) -> Tensor:
    """[B, D, h, w] -> [B, h*w, D] row-major tokens."""
    return rearrange(x, "b d h w -> b (h w) d")
