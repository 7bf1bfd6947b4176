"""Exponential moving average of the weights, with a half-life in images."""

from __future__ import annotations

import torch
from torch import nn


def ema_beta(nimg: int, batch_size: int, ema_kimg: float, ema_rampup: float | None) -> float:
    """beta = 0.5^(batch_size / h), h = min(1000 ema_kimg, nimg * ema_rampup) images.

    Args:
        nimg: images seen before this step; at 0 the average is the current weights.
    """
    half_life = 1000 * ema_kimg
    if ema_rampup is not None:
        half_life = min(half_life, nimg * ema_rampup)
    return 0.5 ** (batch_size / max(half_life, 1e-8))


@torch.no_grad()
def update_ema(average: nn.Module, model: nn.Module, beta: float) -> None:
    """ema <- p + beta (ema - p) for all parameters; buffers are copied. Both modules have the same structure."""
    targets, sources = list(average.parameters()), list(model.parameters())
    torch._foreach_lerp_(targets, sources, 1 - beta)
    for target, source in zip(average.buffers(), model.buffers(), strict=True):
        target.copy_(source)
