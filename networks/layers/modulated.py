"""Modulated convolution with one weight for the whole batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from common.precision import full_precision


def same_conv(x: Tensor, weight: Tensor) -> Tensor:
    """Convolution with an odd kernel that keeps the side."""
    return F.conv2d(x, weight, padding=weight.shape[-1] // 2)


def modulated_conv(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    bias: Tensor | None = None,
    demodulate: bool = True,
    convolve: Callable[[Tensor, Tensor], Tensor] = same_conv,
) -> Tensor:
    """Convolution whose weight is scaled per sample on its input channels, and normalised per output channel.

    W'_oik = W_oik s_i;  W''_oik = W'_oik / sqrt(sum_ik W'_oik^2 + 1e-8);  y = W'' * x + b.
    Scales on input and output channels commute with the convolution, so it is computed as
    scale -> one shared convolution -> demodulate, instead of one convolution per sample.

    Args:
        x: [B, C_in, H, W].
        weight: [C_out, C_in, k, k].
        styles: [B, C_in], fp32.
        bias: anything that broadcasts to [B, C_out, H, W].
        demodulate: normalise the output channels.
        convolve: the convolution of x with the weight.
    """
    if demodulate and x.dtype == torch.float16:
        # Demodulation undoes any scale of weights and styles; small ones keep the products below fp16's 65504.
        fan_in = weight[0].numel()
        weight = weight / (weight.abs().amax(dim=(1, 2, 3), keepdim=True) * fan_in**0.5)
        styles = styles / styles.abs().amax(dim=1, keepdim=True)
    y = convolve(x * styles[:, :, None, None].to(x.dtype), weight)
    if demodulate:
        with full_precision(x.device):
            squares = weight.float().square().sum(dim=(2, 3))  # [C_out, C_in]
            norm = (styles.float().square() @ squares.T + 1e-8).rsqrt()  # [B, C_out]
        norm = norm[:, :, None, None].to(y.dtype)
        return y * norm if bias is None else torch.addcmul(bias.to(y.dtype), y, norm)
    return y if bias is None else y + bias.to(y.dtype)
