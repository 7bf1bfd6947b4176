"""`--dry-run` of a diffusion model: what a configuration builds and what a step costs, on the meta device."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from networks.diffusion.reg_sit import REGSiT
from networks.diffusion.transformer import DiffusionTransformer
from trainer.network_dry_run import describe_network, split_of_a_step

if TYPE_CHECKING:
    from configs.diffusion import DiffusionExperiment


def describe(
    config: DiffusionExperiment, build_network: Callable[[DiffusionExperiment], DiffusionTransformer], ranks: int
) -> str:
    """Shapes, parameters, and estimates of memory and time per kimg, as a text. Target encoders are not counted."""
    with torch.device("meta"):
        network = build_network(config)
    c, size = config.network, config.network.size()
    rows = [
        ("latents", f"{c.input_size} x {c.input_size} x {c.in_channels}, {split_of_a_step(config, ranks)}"),
        ("tokens", f"{c.tokens_per_side()} x {c.tokens_per_side()} of width {size.hidden_size}"),
        ("blocks", f"{size.depth} with {size.num_heads} heads"),
        ("classes", f"{c.num_classes}"),
    ]
    without = " (without the target encoders)" if isinstance(network, REGSiT) else ""
    return describe_network(config, network, lambda batch: training_pass(network, batch), rows, ranks, without)


def training_pass(network: DiffusionTransformer, batch: int) -> object:
    """A forward pass of training on made-up inputs; the network is on the meta device."""
    c, meta = network.config, torch.device("meta")
    x = torch.empty(batch, c.in_channels, c.input_size, c.input_size, device=meta)
    t, y = torch.empty(batch, device=meta), torch.zeros(batch, dtype=torch.int64, device=meta)
    if isinstance(network, REGSiT):
        return network(x, t, y, torch.empty(batch, c.z_dims[0], device=meta))
    return network(x, t, y)
