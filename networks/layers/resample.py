"""Upsampling by 2 with a fixed blur."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from networks.layers.depthwise import DepthwiseConv2d
from networks.layers.norm import GroupNorm


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
            taps = torch.tensor(blur_taps, dtype=torch.float32)
            kernel = torch.outer(taps, taps) / taps.sum() ** 2
            self.register_buffer("blur_kernel", kernel.expand(n_out, 1, -1, -1).clone())

    def forward(self, x: Tensor) -> Tensor:
        if self.norm_first:
            x = self.norm(x)
        x = F.pixel_shuffle(self.pointwise(self.depthwise(x)), 2)
        if not self.norm_first:
            x = self.norm(x)
        return self._blur(x) if self.has_blur else x

    def _blur(self, x: Tensor) -> Tensor:
        before, after = (self.blur_kernel.shape[-1] - 1) // 2, self.blur_kernel.shape[-1] // 2
        x = F.pad(x, (before, after, before, after), mode="replicate")
        return F.conv2d(x, self.blur_kernel.to(x.dtype), groups=x.shape[1])
