"""Region-adaptive tokens: learned queries gather features of several layers by deformable attention (VFMTok).

levels of the frozen encoder -> one projection each -> queries on a square grid look at points of all levels -> tokens
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.precision import full_precision
from networks.interfaces import Features
from networks.vfmtok.attention import CausalSelfAttention
from networks.vfmtok.config import RegionEncoderConfig
from networks.vfmtok.deformable_attention import Grid, MultiScaleDeformableAttention


class LevelProjection(nn.Module):
    """Features of one layer of the encoder [B, N, D_i] -> the width of the region tokens [B, N, D]."""

    def __init__(self, width_in: int, width: int):
        super().__init__()
        self.first = nn.Linear(width_in, width, bias=False)
        self.first_norm = nn.LayerNorm(width)
        self.second = nn.Linear(width, width, bias=False)
        self.second_norm = nn.LayerNorm(width)
        self.norm = nn.LayerNorm(width)  # two in a row, as published weights have it

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first_norm(self.first(x)))
        return self.norm(self.second_norm(self.second(x)))


class RegionLayer(nn.Module):
    """Deformable cross-attention, causal self-attention and a feed-forward layer, each normalised after its residual.

    The tokens are causal in raster order, as the autoregressive models that are trained on them are. Attention runs in
    fp32 under autocast: sampling points need more digits than bf16 has.
    """

    def __init__(self, config: RegionEncoderConfig, num_levels: int):
        super().__init__()
        width = config.width
        self.cross_attention = MultiScaleDeformableAttention(width, config.heads, num_levels, config.num_points)
        self.cross_norm = nn.LayerNorm(width)
        self.self_attention = CausalSelfAttention(width, config.heads)
        self.self_norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, config.mlp_dim)
        self.project = nn.Linear(config.mlp_dim, width)
        self.feed_forward_norm = nn.LayerNorm(width)

    def forward(self, q: Tensor, positions: Tensor, reference: Tensor, levels: Tensor, grids: Sequence[Grid]) -> Tensor:
        """Tokens q [B, N, D] -> [B, N, D]; see `RegionLayers`."""
        with full_precision(q.device):
            q = q.float()
            q = self.cross_norm(q + self.cross_attention(q + positions, reference, levels.float(), grids))
            q = self.self_norm(q + self.self_attention(q + positions))
        return self.feed_forward_norm(q + self.project(F.relu(self.expand(q))))


class RegionLayers(nn.ModuleList):
    """The stack of `RegionLayer`s."""

    def __init__(self, config: RegionEncoderConfig, num_levels: int):
        super().__init__(repeated(lambda: RegionLayer(config, num_levels), config.depth, config.init))

    def forward(self, q: Tensor, positions: Tensor, levels: Sequence[Tensor], grids: Sequence[Grid]) -> Tensor:
        """Region tokens.

        Args:
            q: queries of a square grid in raster order, [B, N, D].
            positions: added to the queries in every layer, [1, N, D].
            levels: projected features, each [B, h_i w_i, D].
            grids: (h_i, w_i) of each.
        """
        reference = reference_points(q.shape[1], q.device)[None, :, None]  # the same on all levels
        together = torch.cat(list(levels), dim=1)
        for layer in self:
            q = layer(q, positions, reference, together, grids)
        return q


class RegionEncoder(nn.Module):
    """Features of all levels -> region tokens.

    Args:
        config: its shape.
        widths: channels of the levels.
    """

    def __init__(self, config: RegionEncoderConfig, widths: Sequence[int]):
        super().__init__()
        scale = config.width**-0.5
        self.queries = nn.Parameter(scale * torch.randn(1, config.num_tokens, config.width))
        self.positions = nn.Parameter(scale * torch.randn(1, config.num_tokens, config.width))
        self.query_norm = nn.LayerNorm(config.width)
        self.projections = nn.ModuleList(LevelProjection(width, config.width) for width in widths)
        if config.init == "copies" and len(set(widths)) == 1:
            self.projections = nn.ModuleList(copy.deepcopy(self.projections[0]) for _ in widths)
        self.layers = RegionLayers(config, len(widths))

    def forward(self, features: Features) -> Tensor:
        """-> [B, N, D], in raster order of the queries' grid."""
        levels = [project(level) for project, level in zip(self.projections, features.levels, strict=True)]
        q = self.query_norm(self.queries).expand(len(levels[0]), -1, -1)
        return self.layers(q, self.positions, levels, features.grids)


def reference_points(count: int, device: torch.device | None = None) -> Tensor:
    """Centres (x, y) in [0, 1] of the cells of a square grid of `count` cells in raster order, [count, 2]."""
    side = round(count**0.5)
    centres = (torch.arange(side, dtype=torch.float32, device=device) + 0.5) / side
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    return torch.stack([x, y], dim=-1).flatten(0, 1)


def repeated(build: Callable[[], nn.Module], count: int, init: str) -> list[nn.Module]:
    """`count` modules, each with weights of its own, or all with those of the first (`init` "copies")."""
    if init == "independent":
        return [build() for _ in range(count)]
    first = build()
    return [first, *(copy.deepcopy(first) for _ in range(count - 1))]
