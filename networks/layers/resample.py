"""Upsampling by 2 with a fixed filter."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.precision import full_precision
from networks.layers.depthwise import DepthwiseConv2d
from networks.layers.norm import GroupNorm

STYLEGAN_TAPS = (1, 3, 3, 1)


def separable_kernel(taps: Sequence[int]) -> Tensor:
    """Outer product [k, k] of taps with themselves, of sum 1."""
    line = torch.tensor(taps, dtype=torch.float32)
    return torch.outer(line, line) / line.sum() ** 2


def upsample2d(x: Tensor, kernel: Tensor) -> Tensor:
    """Upsampling of StyleGAN2: zeros between the pixels, then a filter; [B, C, H, W] -> [B, C, 2H, 2W].

    In the precision of its input, for it carries images from block to block.

    Args:
        kernel: [4, 4], symmetric, of sum 1; outside the image are zeros.
    """
    weight = (4 * kernel).to(x.dtype).expand(x.shape[1], 1, -1, -1)
    with full_precision(x.device):
        return F.conv_transpose2d(x, weight, stride=2, padding=1, groups=x.shape[1])


def upsampling_conv(x: Tensor, weight: Tensor, kernel: Tensor) -> Tensor:
    """3x3 convolution of an image with zeros between its pixels, then a filter; [B, C, H, W] -> [B, C', 2H, 2W].

    Args:
        weight: [C', C, 3, 3].
        kernel: as in `upsample2d`.
    """
    y = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)  # [B, C', 2H + 1, 2W + 1]
    return F.conv2d(y, (4 * kernel).to(y.dtype).expand(y.shape[1], 1, -1, -1), padding=1, groups=y.shape[1])


class BlurUpsampler(nn.Module):
    """Depthwise 3x3 -> 1x1 to four times the channels -> pixel shuffle -> blur, with a group norm.

    Args:
        blur_taps: binomial weights of the separable blur, e.g. (1, 2, 1); None for no blur.
        norm_first: normalise the input (True) or the shuffled output (False; for a raw latent as input).
    """

    def __init__(self, n_in: int, n_out: int, blur_taps: Sequence[int] | None, norm_first: bool = True):
        super().__init__()
        self.norm_first = norm_first
        channels = n_in if norm_first else n_out
        self.norm = GroupNorm(min(32, channels // 4), channels)
        self.depthwise = DepthwiseConv2d(n_in, 3, bias=False)
        self.pointwise = nn.Conv2d(n_in, 4 * n_out, 1, bias=False)
        self.has_blur = blur_taps is not None
        if self.has_blur:
            self.register_buffer("blur_kernel", separable_kernel(blur_taps).expand(n_out, 1, -1, -1).clone())

    def forward(self, x: Tensor) -> Tensor:
        if self.norm_first:
            x = self.norm(x)
        x = F.pixel_shuffle(self.pointwise(self.depthwise(x)), 2)
        if not self.norm_first:
            x = self.norm(x)
        return self._blur(x) if self.has_blur else x

    def _blur(self, x: Tensor) -> Tensor:
        before, after = (self.blur_kernel.shape[-1] - 1) // 2, self.blur_kernel.shape[-1] // 2
        x = replicate_edges(x, before, after)
        return F.conv2d(x, self.blur_kernel.to(x.dtype), groups=x.shape[1])


def replicate_edges(x: Tensor, before: int, after: int) -> Tensor:
    """[B, C, H, W] -> [B, C, before + H + after, before + W + after], outside of which the edge goes on."""
    if not torch.compiler.is_compiling():
        return F.pad(x, (before, after, before, after), mode="replicate")
    # The compiler (torch 2.14) mistakes the memory layout of this padding's gradient where that is channels-last.
    for dim in (2, 3):
        first, last = x.narrow(dim, 0, 1), x.narrow(dim, x.shape[dim] - 1, 1)
        x = torch.cat([first] * before + [x] + [last] * after, dim)
    return x
