"""Multi-scale deformable attention (Deformable DETR, arXiv 2010.04159), by `grid_sample` alone.

B images, Q queries, M heads of width d, L levels (feature maps), P points; S positions of all levels together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

Grid = tuple[int, int]


def sample_levels(value: Tensor, locations: Tensor, weights: Tensor, grids: Sequence[Grid]) -> Tensor:
    """Weighted sum of values that are sampled bilinearly at given points; 0 outside of a map.

    Args:
        value: [B, S, M, d], the levels one after the other, each in row-major order.
        locations: [B, Q, M, L, P, 2] as (x, y), where (0, 0) and (1, 1) are the outer corners of a map.
        weights: [B, Q, M, L, P].
        grids: (height, width) of each level.
    Returns: [B, Q, M d].
    """
    sampled = []
    for level, (height, width) in zip(value.split([h * w for h, w in grids], dim=1), grids):
        maps = rearrange(level, "b (h w) m d -> (b m) d h w", h=height, w=width)
        points = rearrange(locations[:, :, :, len(sampled)], "b q m p xy -> (b m) q p xy")
        sampled.append(F.grid_sample(maps, 2 * points - 1, align_corners=False))  # [B M, d, Q, P]
    shares = rearrange(weights, "b q m l p -> (b m) 1 q (l p)")
    gathered = (torch.cat(sampled, dim=-1) * shares).sum(-1)  # [B M, d, Q]
    return rearrange(gathered, "(b m) d q -> b q (m d)", b=len(value))


class MultiScaleDeformableAttention(nn.Module):
    """Every query looks at a few points around its reference point, on all levels at once.

    Offsets and weights of the points are predicted from the query. At the start the points of head m lie in its own
    one of M directions, at distances of 1, 2, ... positions, and all weigh the same.
    """

    def __init__(self, width: int, heads: int, num_levels: int, num_points: int):
        super().__init__()
        self.heads, self.num_levels, self.num_points = heads, num_levels, num_points
        self.offsets = nn.Linear(width, heads * num_levels * num_points * 2)
        self.weights = nn.Linear(width, heads * num_levels * num_points)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        for layer in (self.offsets, self.weights):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        for layer in (self.value, self.output):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        with torch.no_grad():
            self.offsets.bias.copy_(self._initial_offsets().flatten())

    def _initial_offsets(self) -> Tensor:
        """[M, L, P, 2]: directions around a square, scaled by the number of the point."""
        angles = torch.arange(self.heads, dtype=torch.float32) * (2 * math.pi / self.heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
        directions = directions / directions.abs().amax(dim=-1, keepdim=True)
        steps = torch.arange(1, self.num_points + 1, dtype=torch.float32)
        offsets = directions[:, None, None] * steps[:, None]  # [M, 1, P, 2]
        return offsets.expand(-1, self.num_levels, -1, -1)

    def forward(self, query: Tensor, reference: Tensor, levels: Tensor, grids: Sequence[Grid]) -> Tensor:
        """Queries [B, Q, D] -> [B, Q, D].

        Args:
            reference: points (x, y) in [0, 1] that the offsets are added to, broadcasts to [B, Q, L, 2].
            levels: [B, S, D], the levels one after the other.
            grids: (height, width) of each level.
        """
        value = rearrange(self.value(levels), "b s (m d) -> b s m d", m=self.heads)
        shape = {"m": self.heads, "l": self.num_levels, "p": self.num_points}
        offsets = rearrange(self.offsets(query), "b q (m l p xy) -> b q m l p xy", xy=2, **shape)
        weights = rearrange(self.weights(query), "b q (m lp) -> b q m lp", m=self.heads).softmax(-1)
        weights = rearrange(weights, "b q m (l p) -> b q m l p", l=self.num_levels)
        sizes = query.new_tensor([(width, height) for height, width in grids])  # [L, 2]
        locations = reference[:, :, None, :, None] + offsets / sizes[:, None]
        return self.output(sample_levels(value, locations, weights, grids))
