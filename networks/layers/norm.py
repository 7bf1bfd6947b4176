"""Normalisation layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.precision import full_precision


class GroupNorm(nn.GroupNorm):
    """Group normalisation computed in fp32 whatever the input's precision; the output has the input's dtype."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float32:
            return super().forward(x)
        with full_precision(x.device):
            if x.device.type == "cpu":  # this kernel accumulates in fp32 and takes a bf16 input with fp32 weights
                return F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
            return F.group_norm(x.float(), self.num_groups, self.weight, self.bias, self.eps).to(x.dtype)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis (arXiv 1910.07467).

    Normalised in fp32 and brought back to the input's precision before the weight multiplies it, so that under autocast
    the output has the weight's precision.
    """

    def __init__(self, channels: int, eps: float = 1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        normalised = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return normalised.to(x.dtype) * self.weight


class TokenRMSNorm(nn.Module):
    """x / max(||x||_2 over channels, 1e-12) * sqrt(C) * gamma, on tokens [B, L, C]."""

    def __init__(self, channels: int):
        super().__init__()
        self.scale = channels**0.5
        self.gamma = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1) * (self.scale * self.gamma).to(x.dtype)


class ChannelRMSNorm(nn.Module):
    """The same on feature maps [B, C, H, W]."""

    def __init__(self, channels: int):
        super().__init__()
        self.scale = channels**0.5
        self.gamma = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1) * (self.scale * self.gamma).to(x.dtype)
