"""Encoder side of the latent adapter: chosen VFM layers -> project -> space-to-depth -> concatenate -> moments.

In discrete mode, what comes last are the channels to quantise instead of moments.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import ShapeError
from networks.config import EncoderConfig, LatentConfig, fused_channels
from networks.interfaces import Features
from networks.layers.attention_projection import AttentionProjection
from networks.tokens import map_to_tokens, tokens_to_map


def unshuffle_tokens(tokens: Tensor, grid: tuple[int, int], factor: int) -> tuple[Tensor, tuple[int, int]]:
    """Space-to-depth on tokens: [B, h*w, D] -> [B, h*w / f^2, D f^2], and the new grid.

    Channel order is that of a pixel unshuffle: new channel = d * f^2 + row offset * f + column offset.
    """
    if factor == 1:
        return tokens, grid
    x = F.pixel_unshuffle(tokens_to_map(tokens, grid), factor)
    return map_to_tokens(x), (x.shape[2], x.shape[3])


def width_projection(
    kind: str, n_in: int, n_out: int, layers: int, width_changes_last: bool
) -> AttentionProjection | nn.Conv2d:
    """A change of token width: attention (`attnproj`) with max(n_in, n_out) / min(n_in, n_out) heads, or 1x1 conv."""
    if kind == "conv":
        return nn.Conv2d(n_in, n_out, 1)
    heads = max(1, n_in // n_out if width_changes_last else n_out // n_in)
    return AttentionProjection(n_in, n_out, heads, layers, width_changes_last)


def project_tokens(projection: AttentionProjection | nn.Conv2d, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Apply either kind of projection to tokens."""
    if isinstance(projection, nn.Conv2d):
        return map_to_tokens(projection(tokens_to_map(tokens, grid)))
    return projection(tokens)


def initialise_adapter(module: nn.Module) -> None:
    """Adapter initialisation: linear N(0, 0.02) truncated, convolutions Xavier normal of gain 0.5, biases 0."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=0.02)
        elif isinstance(part, nn.Conv2d):
            nn.init.xavier_normal_(part.weight, gain=0.5)
        if isinstance(part, nn.Linear | nn.Conv2d) and part.bias is not None:
            nn.init.zeros_(part.bias)


class Compression(nn.Module):
    """Fuses several encoder layers into the bottleneck's input (paper: multi-scale latent fusion, encoder side).

    Args:
        encoder: which layers and how wide.
        latent: widths of the projections and of the latent.
        unshuffle: side of the encoder's token grid over the latent's, of each layer.
    """

    def __init__(self, encoder: EncoderConfig, latent: LatentConfig, unshuffle: list[int]):
        super().__init__()
        self.unshuffle = list(unshuffle)
        kind, layers = latent.how_to_compress, latent.attnproj_quant_layers
        self.projections = nn.ModuleList(
            width_projection(kind, n_in, n_out, layers, width_changes_last=True)
            for n_in, n_out in zip(encoder.patch_in_dimensions, latent.patch_out_dimensions, strict=True)
        )
        fused = fused_channels(latent.patch_out_dimensions, unshuffle)
        self.head = width_projection(kind, fused, latent.head_channels(), layers, width_changes_last=True)
        initialise_adapter(self)

    @property
    def last_weight(self) -> nn.Parameter:
        """Weight of the last layer before the bottleneck; the adaptive VF weight compares gradients on it."""
        return self.head.weight if isinstance(self.head, nn.Conv2d) else self.head.blocks[-1].mlp.out.weight

    def forward(self, features: Features) -> Tensor:
        """Features -> moments [B, 2C, h, w], or in discrete mode what is to be quantised, [B, C, h, w].

        Raises: ShapeError if a layer's grid is no multiple of the latent's, or the layers' latent grids differ.
        """
        fused, grids = [], []
        layers = zip(self.projections, features.levels, features.grids, self.unshuffle, strict=True)
        for projection, tokens, grid, factor in layers:
            if grid[0] % factor or grid[1] % factor:
                raise ShapeError(
                    f"encoder tokens form a {grid[0]} x {grid[1]} grid; expected both sides to be multiples of "
                    f"{factor} (encoder grid over latent grid). Use another image size."
                )
            tokens, grid = unshuffle_tokens(project_tokens(projection, tokens, grid), grid, factor)
            fused.append(tokens)
            grids.append(grid)
        if len(set(grids)) != 1:
            raise ShapeError(f"the encoder's layers lead to different latent grids {grids}; expected one.")
        head = project_tokens(self.head, torch.cat(fused, dim=-1), grids[0])
        return tokens_to_map(head, grids[0])
