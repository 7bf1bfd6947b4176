"""Times at which a diffusion model is trained, from 0 (data) to 1 (noise). Draws are float32 [B] on the CPU."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from losses.config import REGLossConfig, TransportConfig


def logit_normal_times(normal: Tensor) -> Tensor:
    """t = 1 / (1 + exp(-n)) of standard normal draws, as stable diffusion 3 (arXiv:2403.03206, section 3.1)."""
    return torch.sigmoid(normal)


def lognormal_ratio_times(normal: Tensor, path_type: str) -> Tensor:
    """The times at which sigma / alpha = exp(n) on REG's path `linear` or `cosine`."""
    if path_type == "linear":
        return torch.sigmoid(normal)
    return torch.atan(torch.exp(normal)) * (2 / math.pi)


def draw_transport_times(count: int, transport: TransportConfig, generator: Generator) -> Tensor:
    """One time per sample for LightningDiT, within the interval of training."""
    if transport.use_lognorm:
        unit = logit_normal_times(torch.randn(count, generator=generator))
    else:
        unit = torch.rand(count, generator=generator)
    interval = transport.training_interval
    return interval.low + (interval.high - interval.low) * unit


def draw_reg_times(count: int, config: REGLossConfig, generator: Generator) -> Tensor:
    """One time per sample for REG."""
    if config.weighting == "lognormal":
        return lognormal_ratio_times(torch.randn(count, generator=generator), config.path_type)
    return torch.rand(count, generator=generator)
