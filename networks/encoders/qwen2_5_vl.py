"""The vision tower of Qwen2.5-VL: attention within windows, and a merger of 2 x 2 patches at the end.

    B images; H x W patches; m patches per side of a merge group; N = H*W patches; G = N / m^2 groups

The tower takes patches group by group and computes in window order: its groups, window after window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from networks.encoders.base import CLIP_MEAN, CLIP_STD
from networks.encoders.transformers_vit import TransformersViT


@dataclass(frozen=True)
class _Context:
    """What the blocks need for a batch.

    Attributes:
        rotary: cosines and sines of the positions, [B*N, head width] each, in window order.
        image_ends, window_ends: where attention is cut, over the whole batch; on the CPU, where they are read.
    """

    rotary: tuple[Tensor, Tensor]
    image_ends: Tensor
    window_ends: Tensor


def window_order(height: int, width: int, side: int) -> tuple[Tensor, list[int]]:
    """Groups of one image, window after window.

    Args:
        height, width: groups of the image.
        side: groups per side of a window; windows at the right and lower edge are cut off.

    Returns: row-major numbers of the groups, window by window, [G]; the number of groups in each window.
    """
    groups = torch.arange(height * width).view(height, width)
    windows = [window.flatten() for rows in groups.split(side) for window in rows.split(side, dim=1)]
    return torch.cat(windows), [len(window) for window in windows]


class Qwen25VLEncoder(TransformersViT):
    """Vision tower of Qwen2.5-VL; sides must be multiples of two patches.

    All layers are row-major over the image. Layer 0 knows no positions (they are rotary); layer -1 is the merger's
    output, one token of the language model's width per 2 x 2 patches.
    """

    interpolation = "bicubic"
    mean, std = CLIP_MEAN, CLIP_STD
    model_classes = (
        ("qwen2_5_vl", "Qwen2_5_VisionTransformerPretrainedModel"),
        ("qwen2_5_vl_vision", "Qwen2_5_VisionTransformerPretrainedModel"),
    )
    file_prefix = r"^(model\.)?visual\."  # of the tower in a whole model; unless it is taken off, all stays random

    @property
    def merge(self) -> int:
        """Patches per side of a merge group."""
        return self.backbone.config.spatial_merge_size

    @property
    def pixel_multiple(self) -> int:
        return self.patch_size * self.merge

    def layer_patch_size(self, layer: int) -> int:
        return self.pixel_multiple if layer == -1 else self.patch_size

    def layer_channels(self, layer: int) -> int:
        config = self.backbone.config
        return config.out_hidden_size if layer == -1 else config.hidden_size

    def patches(self, pixels: Tensor) -> Tensor:
        """[B, 3, H*p, W*p] -> [B, N, 3*t*p*p] group by group; an image is a still of t frames."""
        return repeat(
            pixels,
            "b c (gh mh p) (gw mw q) -> b (gh gw mh mw) (c t p q)",
            mh=self.merge,
            mw=self.merge,
            p=self.patch_size,
            q=self.patch_size,
            t=self.backbone.config.temporal_patch_size,
        )

    def order(self, grid: tuple[int, int]) -> tuple[Tensor, list[int]]:
        """`window_order` of an image of these patches."""
        side = self.backbone.config.window_size // self.pixel_multiple
        return window_order(grid[0] // self.merge, grid[1] // self.merge, side)

    def embed(self, pixels: Tensor) -> tuple[Tensor, Any]:
        batch, grid = len(pixels), (pixels.shape[2] // self.patch_size, pixels.shape[3] // self.patch_size)
        order, lengths = self.order(grid)
        group = self.merge**2
        tokens = self.backbone.patch_embed(self.patches(pixels).flatten(0, 1))  # [B*N, D]
        tokens = self._reorder(tokens, batch, order)
        context = _Context(
            rotary=self._rotary(grid, batch, order.to(pixels.device)),
            image_ends=_ends([grid[0] * grid[1]] * batch),
            window_ends=_ends([length * group for length in lengths] * batch),
        )
        return tokens, context

    def _reorder(self, tokens: Tensor, batch: int, order: Tensor) -> Tensor:
        """Reorder the groups of each image; [B*N, D] in and out."""
        groups = rearrange(tokens, "(b g m) d -> b g m d", b=batch, m=self.merge**2)
        return groups[:, order.to(tokens.device)].flatten(0, 2)

    def _rotary(self, grid: tuple[int, int], batch: int, order: Tensor) -> tuple[Tensor, Tensor]:
        """Angles of row and column, each over a quarter of a head, the half repeated to fill it."""
        rows, columns = torch.meshgrid(*(torch.arange(n, device=order.device) for n in grid), indexing="ij")
        positions = rearrange(
            torch.stack([rows, columns], -1), "(gh mh) (gw mw) d -> (gh gw mh mw) d", mh=self.merge, mw=self.merge
        )
        frequencies = self.backbone.rotary_pos_emb.inv_freq.float()
        angles = (positions[..., None].float() * frequencies).flatten(1)  # [N, head width / 2]
        angles = self._reorder(angles, 1, order).repeat(batch, 2)
        return angles.cos(), angles.sin()

    @property
    def blocks(self) -> nn.ModuleList:
        return self.backbone.blocks

    def step(self, number: int, state: Tensor, context: Any) -> Tensor:
        whole = number in self.backbone.config.fullatt_block_indexes
        ends = context.image_ends if whole else context.window_ends
        return self.blocks[number](state, cu_seqlens=ends, position_embeddings=context.rotary)

    def level(self, layer: int, state: Tensor, grid: tuple[int, int]) -> Tensor:
        batch = len(state) // (grid[0] * grid[1])
        order, _ = self.order(grid)
        state = self._reorder(state, batch, order.argsort())
        if layer == -1:
            return rearrange(self.backbone.merger(state), "(b g) d -> b g d", b=batch)
        return rearrange(
            state,
            "(b gh gw mh mw) d -> b (gh mh gw mw) d",
            b=batch,
            gh=grid[0] // self.merge,
            mh=self.merge,
            mw=self.merge,
        )

    def pool(self, pixels: Tensor) -> Tensor:
        """The mean of the merged tokens."""
        merged = self.backbone.merger(self.hidden_states(pixels, {self.depth})[self.depth])
        return rearrange(merged, "(b g) d -> b g d", b=len(pixels)).mean(1)


def _ends(lengths: list[int]) -> Tensor:
    """Cumulative lengths from 0."""
    return torch.tensor([0, *lengths], device="cpu").cumsum(0, dtype=torch.int32)
