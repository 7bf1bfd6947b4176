"""Equalised linear layers of the StyleGAN family, and styles made from w."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.precision import full_precision


class FullyConnected(nn.Module):
    """Linear layer with a run-time gain: y = act(x (W * lr_mult / sqrt(in))^T + b * lr_mult).

    Args:
        lr_multiplier: scale of the effective learning rate; W starts as N(0, 1) / lr_multiplier.
        bias_init: effective value that every bias starts at.
        leaky: apply a leaky ReLU of slope 0.2 (without a gain of sqrt 2).
    """

    def __init__(self, n_in: int, n_out: int, lr_multiplier: float = 1.0, bias_init: float = 0.0, leaky: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_out, n_in) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((n_out,), bias_init / lr_multiplier))
        self.weight_gain = lr_multiplier / n_in**0.5
        self.bias_gain = lr_multiplier
        self.leaky = leaky

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight * self.weight_gain, self.bias * self.bias_gain)
        return F.leaky_relu(y, 0.2) if self.leaky else y


class StyleAffine(FullyConnected):
    """Styles of a layer from w [B, w_dim]: three chunks (a, b, c) of a linear map, combined to a * b + c, [B, C].

    Always in fp32: styles scale whole channels, and the layer costs next to nothing.
    """

    def __init__(self, w_dim: int, channels: int):
        super().__init__(w_dim, 3 * channels, bias_init=1.0)

    def forward(self, w: Tensor) -> Tensor:
        with full_precision(w.device):
            a, b, c = super().forward(w.float()).chunk(3, dim=1)
            return a * b + c
