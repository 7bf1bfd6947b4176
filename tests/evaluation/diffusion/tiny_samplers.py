"""Samplers of tiny networks that always have the same weights."""

from __future__ import annotations

from collections.abc import Callable

import torch

from evaluation.diffusion.config import LightningDiTSamplingConfig, REGSamplingConfig
from evaluation.diffusion.samplers import LightningDiTSampler, REGSampler
from losses.config import TransportConfig
from networks.diffusion.lightningdit import LightningDiT
from networks.diffusion.reg_sit import REGSiT
from networks.diffusion.transformer import DiffusionTransformer
from tests.networks.diffusion.tiny import lightningdit, reg_sit


def seeded(build: Callable[..., DiffusionTransformer], **changes) -> DiffusionTransformer:
    """A network in eval mode, with weights that are the same at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build(**changes).eval()


def lightningdit_sampler(network: LightningDiT | None = None, **options) -> LightningDiTSampler:
    options = {"num_sampling_steps": 6, "cfg_scale": 3.0, "cfg_interval_start": 0.3, **options}
    network = network or seeded(lightningdit)
    return LightningDiTSampler(network, TransportConfig(), LightningDiTSamplingConfig(**options))


def reg_sampler(network: REGSiT | None = None, **options) -> REGSampler:
    options = {"num_steps": 5, "cfg_scale": 3.0, "guidance_high": 0.7, **options}
    return REGSampler(network or seeded(reg_sit), "linear", REGSamplingConfig(**options))
