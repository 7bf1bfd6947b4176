"""From latents, positions, times and labels to tokens and vectors.

B batch, N tokens, D width, d size of a head.
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor, nn

TIME_FEATURES = 256


class PatchEmbedding(nn.Module):
    """Each patch of a latent as one token: [B, C, H, W] -> [B, N, D], row by row."""

    def __init__(self, channels: int, width: int, patch_size: int):
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch_size, patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return rearrange(self.proj(x), "b d h w -> b (h w) d")


def join_patches(tokens: Tensor, patch_size: int) -> Tensor:
    """[B, h*h, p*p*C] -> [B, C, h*p, h*p]; a token holds its patch row by row, the channels of a position together."""
    side = math.isqrt(tokens.shape[1])
    return rearrange(tokens, "b (h w) (p q c) -> b c (h p) (w q)", h=side, p=patch_size, q=patch_size)


def position_table(side: int, width: int) -> Tensor:
    """Fixed sine and cosine positions of a square grid, [side*side, width] in fp32.

    A row is [e(column), e(row)] with e(u) = [sin(u w_j), cos(u w_j)], w_j = 10000^(-j/q), j = 0 ... q-1, q = width/4.
    """
    quarter = width // 4
    frequencies = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    angles = torch.arange(side, dtype=torch.float64)[:, None] * frequencies
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)  # [side, width/2]
    columns, rows = axis.repeat(side, 1), axis.repeat_interleave(side, dim=0)
    return torch.cat([columns, rows], dim=1).float()


class RotaryEmbedding(nn.Module):
    """Rotary positions of a square grid, rows in the first half of a head, columns in the second (axial RoPE).

    Channels 2i and 2i+1 of a half with a channels turn by u * 10000^(-2i/a), u the token's row or column.
    The tables are part of the state dict.
    """

    freqs_cos: Tensor
    freqs_sin: Tensor

    def __init__(self, side: int, head_size: int):
        super().__init__()
        half = head_size // 2
        frequencies = 10000.0 ** (-torch.arange(0, half, 2) / half)
        angles = (torch.arange(side)[:, None] * frequencies).repeat_interleave(2, dim=1)  # [side, d/2]
        rows, columns = angles.repeat_interleave(side, dim=0), angles.repeat(side, 1)
        turns = torch.cat([rows, columns], dim=1)  # [N, d]
        self.register_buffer("freqs_cos", turns.cos())
        self.register_buffer("freqs_sin", turns.sin())

    def forward(self, x: Tensor) -> Tensor:
        """Turn queries or keys [B, heads, N, d]; the result is at least fp32, like the tables."""
        even, odd = x[..., 0::2], x[..., 1::2]
        quarter_turn = torch.stack([-odd, even], dim=-1).flatten(-2)
        return x * self.freqs_cos + quarter_turn * self.freqs_sin


def time_features(t: Tensor) -> Tensor:
    """[cos(t w_j), sin(t w_j)] with w_j = 10000^(-j/128), j = 0 ... 127: times [B] -> [B, 256] in fp32."""
    half = TIME_FEATURES // 2
    frequencies = torch.exp(-math.log(10000) / half * torch.arange(half, dtype=torch.float32, device=t.device))
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class TimeEmbedding(nn.Module):
    """Times [B] -> [B, D]."""

    def __init__(self, width: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(TIME_FEATURES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        return self.mlp(time_features(t).to(self.mlp[0].weight.dtype))
