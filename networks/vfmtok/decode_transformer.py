"""The transformer that spreads region tokens over a grid (VFMTok): of the image, or of the frozen features.

region tokens, then a class token and one mask token per position -> causal blocks -> what stands at the positions
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from networks.layers.swiglu import SwiGLU
from networks.vfmtok.attention import CausalSelfAttention
from networks.vfmtok.config import DecodeTransformerConfig

GRID_MARGIN = 0.1  # added to the target side before position embeddings are resized; published weights know them so


class DecodeBlock(nn.Module):
    """Causal self-attention and SwiGLU, each normalised before its residual."""

    def __init__(self, width: int, config: DecodeTransformerConfig):
        super().__init__()
        hidden = (2 * config.mlp_dim // 3 + 7) // 8 * 8
        self.attention_norm = nn.LayerNorm(width)
        self.attention = CausalSelfAttention(width, config.heads, config.dropout)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = SwiGLU(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(self.feed_forward_norm(x))


class DecodeTransformer(nn.Module):
    """Region tokens -> a map to decode pixels from, and, for training, the frozen features they should tell of.

    Both passes use the same blocks. Register tokens are parameters of published weights that stand last in a causal
    sequence and whose outputs nobody reads, so they are kept and not run.

    Args:
        config: its shape.
        width: D, of the region tokens.
        num_tokens: number of region tokens.
        feature_side: side of the grid of frozen features; the position embeddings are of this grid.
        feature_width: channels of these features.
    """

    def __init__(
        self, config: DecodeTransformerConfig, width: int, num_tokens: int, feature_side: int, feature_width: int
    ):
        super().__init__()
        self.feature_side = feature_side

        def embedding(count: int) -> nn.Parameter:
            return nn.Parameter(width**-0.5 * torch.randn(1, count, width))

        self.positions = embedding(1 + feature_side**2)
        self.region_positions = embedding(num_tokens)
        self.pixel_mask = embedding(1)
        self.feature_mask = embedding(1)
        self.class_token = embedding(1)
        self.registers = nn.Parameter(torch.zeros(1, config.num_register_tokens, width), requires_grad=False)
        self.blocks = nn.ModuleList(DecodeBlock(width, config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width)  # of region tokens in both passes, and of the pixel pass's mask tokens
        self.feature_norm = nn.LayerNorm(width)
        self.to_features = nn.Linear(width, feature_width)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, regions: Tensor, side: int) -> Tensor:
        """Region tokens [B, N, D] -> a map [B, D, side, side]."""
        spread = self._spread(regions, self.pixel_mask, self.positions_for(side), self.norm)
        return rearrange(spread, "b (h w) d -> b d h w", h=side)

    def predict_features(self, regions: Tensor) -> Tensor:
        """Region tokens [B, N, D] -> features of the frozen encoder [B, feature_side^2, D_vfm], in raster order."""
        return self.to_features(self._spread(regions, self.feature_mask, self.positions, self.feature_norm))

    def _spread(self, regions: Tensor, mask: Tensor, positions: Tensor, norm: nn.LayerNorm) -> Tensor:
        regions = self.norm(regions + self.region_positions)
        masks = torch.cat([self.class_token + positions[:, :1], mask + positions[:, 1:]], dim=1)
        x = torch.cat([regions, norm(masks).expand(regions.shape[0], -1, -1)], dim=1)
        for block in self.blocks:
            x = block(x)
        return x[:, regions.shape[1] + 1 :]

    def positions_for(self, side: int) -> Tensor:
        """Position embeddings of the class token and of a grid of this side, [1, 1 + side^2, D]."""
        if side == self.feature_side:
            return self.positions
        grid = rearrange(self.positions[:, 1:], "b (h w) d -> b d h w", h=self.feature_side)
        factor = (side + GRID_MARGIN) / self.feature_side
        grid = F.interpolate(grid, scale_factor=(factor, factor), mode="bicubic", align_corners=False)
        return torch.cat([self.positions[:, :1], rearrange(grid, "b d h w -> b (h w) d")], dim=1)
