"""Rotary positions of a grid of tokens behind a class token.

N tokens of a square grid, d size of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rope_table(side: int, head_size: int, base: float = 10000.0) -> Tensor:
    """Cosines and sines, float32 [1 + N, d/2, 2]: those of the class token, then of each token row by row.

    The first d/4 pairs of a head turn by row * f_i, the others by column * f_i, with f_i = base^(-2i / (d/2)).

    The class token's are zero, sine and cosine alike: it has zero queries and keys. So it attends to nothing but
    itself, every other token gives its key the logit 0, and its value alone carries the class. Published weights were
    trained with that.
    """
    half = head_size // 2
    frequencies = 1.0 / base ** (torch.arange(0, half, 2)[: half // 2].float() / half)
    angles = torch.arange(side)[:, None] * frequencies  # [side, d/4]
    rows, columns = angles.repeat_interleave(side, dim=0), angles.repeat(side, 1)
    turns = torch.cat([rows, columns], dim=1)  # [N, d/2]
    table = torch.stack([turns.cos(), turns.sin()], dim=-1)
    return torch.cat([torch.zeros_like(table[:1]), table])


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turn pairs of neighbouring channels.

    Args:
        x: queries or keys [B, heads, T, d].
        table: rows of `rope_table` for the T positions, [T, d/2, 2].

    Returns: the same, computed in fp32 and brought back to the precision of x.
    """
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = table.unbind(-1)
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2).to(x.dtype)
