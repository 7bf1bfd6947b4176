"""`--dry-run` of an autoregressive model: what a configuration builds and what a step costs, on the meta device."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from networks.ar.gpt import GPT
from trainer.network_dry_run import describe_network, split_of_a_step

if TYPE_CHECKING:
    from configs.gpt_c2i import GPTExperiment


def describe(config: GPTExperiment, build_network: Callable[[GPTExperiment], GPT], ranks: int) -> str:
    """Shapes, parameters, and estimates of memory and time per kimg, as a text. The tokenizer is not counted."""
    with torch.device("meta"):
        network = build_network(config)
    c, size = config.network, config.network.size()

    rows = [
        ("tokens", f"{c.grid_side()} x {c.grid_side()} of {c.vocab_size:,} codes, {split_of_a_step(config, ranks)}"),
        ("layers", f"{size.n_layer} of width {size.dim} with {size.n_head} heads"),
        ("classes", f"{c.num_classes}"),
    ]
    without = " (without the tokenizer)" if config.data.source == "images" else ""
    return describe_network(config, network, lambda batch: training_pass(network, batch), rows, ranks, without)


def training_pass(network: GPT, batch: int) -> Tensor:
    """A forward pass of training on made-up tokens; the network is on the meta device."""
    tokens = torch.zeros(batch, network.config.block_size - 1, dtype=torch.int64, device="meta")
    return network(tokens, torch.zeros(batch, dtype=torch.int64, device="meta"))
