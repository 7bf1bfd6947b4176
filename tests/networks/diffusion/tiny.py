"""Tiny diffusion transformers, and inputs for them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from networks.diffusion.config import LightningDiTConfig, REGSiTConfig
from networks.diffusion.lightningdit import LightningDiT
from networks.diffusion.reg_sit import REGSiT

TINY = {
    "patch_size": 1,
    "hidden_size": 32,
    "depth": 3,
    "num_heads": 2,
    "input_size": 4,
    "in_channels": 5,
    "num_classes": 10,
}
TINY_REG = {**TINY, "z_dims": [12, 20], "projector_dim": 16, "encoder_depth": 2}


@dataclass(frozen=True)
class Inputs:
    """Three latents and all that goes with them."""

    x: Tensor
    t: Tensor
    y: Tensor
    cls_token: Tensor


def tiny_inputs() -> Inputs:
    generator = torch.Generator().manual_seed(0)
    return Inputs(
        torch.randn(3, 5, 4, 4, generator=generator),
        torch.tensor([0.0, 0.3, 1.0]),
        torch.tensor([0, 10, 7]),
        torch.randn(3, 12, generator=generator),
    )


def lightningdit(**changes) -> LightningDiT:
    """A tiny LightningDiT with weights that are nowhere 0."""
    return awake(LightningDiT(LightningDiTConfig(**{**TINY, **changes})))


def reg_sit(**changes) -> REGSiT:
    """A tiny REG SiT with weights that are nowhere 0."""
    return awake(REGSiT(REGSiTConfig(**{**TINY_REG, **changes})))


def awake(network):
    """With the weights that start at 0 drawn, so that every part of the network counts."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad and not parameter.any():
                parameter.normal_(std=0.1, generator=generator)
    return network
