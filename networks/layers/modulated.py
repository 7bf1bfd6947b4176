"""Modulated 1x1 convolution with one weight for the whole batch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from common.precision import full_precision


def modulated_conv1x1(
    x: Tensor, weight: Tensor, styles: Tensor, bias: Tensor | None = None, demodulate: bool = True
) -> Tensor:
    """1x1 convolution whose weight is scaled per sample on its input channels, and normalised per output channel.

    W'_oi = W_oi s_i;  W''_oi = W'_oi / sqrt(sum_i W'_oi^2 + 1e-8);  y = W'' x + b.
    Scales on input and output channels commute with the product, so it is computed as
    scale -> one shared matrix product -> demodulate, instead of one convolution per sample.

    Args:
        x: [B, C_in, H, W].
        weight: [C_out, C_in, 1, 1].
        styles: [B, C_in], fp32.
        bias: anything that broadcasts to [B, C_out, H, W].
        demodulate: normalise the output channels.
    """
    y = F.conv2d(x * styles[:, :, None, None].to(x.dtype), weight)
    if demodulate:
        with full_precision(x.device):
            norm = (styles.float().square() @ weight.float().flatten(1).square().T + 1e-8).rsqrt()  # [B, C_out]
        norm = norm[:, :, None, None].to(y.dtype)
        return y * norm if bias is None else torch.addcmul(bias.to(y.dtype), y, norm)
    return y if bias is None else y + bias.to(y.dtype)
