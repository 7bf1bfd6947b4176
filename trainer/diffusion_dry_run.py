"""`--dry-run` of a diffusion model: what a configuration builds and what a step costs, on the meta device."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from common.distributed import pick_device
from evaluation.cost import count_flops, gemm_flops_per_second
from networks.diffusion.reg_sit import REGSiT
from networks.diffusion.transformer import DiffusionTransformer
from trainer.dry_run import (
    ADAM_BYTES_PER_PARAMETER,
    EMA_BYTES_PER_PARAMETER,
    as_table,
    count_parameters,
    kept_bytes,
    shown_count,
    shown_time,
)

if TYPE_CHECKING:
    from configs.diffusion import DiffusionExperiment


def describe(
    config: DiffusionExperiment, build_network: Callable[[DiffusionExperiment], DiffusionTransformer], ranks: int
) -> str:
    """Shapes, parameters, and estimates of memory and time per kimg, as a text. Target encoders are not counted."""
    with torch.device("meta"):
        network = build_network(config)
    training, size = config.training, config.network.size()
    micro_batch = training.batch_size // (ranks * training.accumulate_gradients)
    trainable = sum(p.numel() for p in network.parameters() if p.requires_grad)
    flops_per_kimg = 3 * count_flops(lambda: _forward(network, micro_batch)) / micro_batch * 1000
    kept = kept_bytes(lambda: _forward(network, micro_batch))
    memory = ADAM_BYTES_PER_PARAMETER * trainable + EMA_BYTES_PER_PARAMETER * count_parameters(network) + kept
    side, tokens = config.network.input_size, config.network.tokens_per_side()
    without = " (without the target encoders)" if isinstance(network, REGSiT) else ""
    return as_table(
        [
            (
                "latents",
                f"{side} x {side} x {config.network.in_channels}, micro-batches of {micro_batch} on {ranks} "
                f"rank{'s' if ranks > 1 else ''}",
            ),
            ("tokens", f"{tokens} x {tokens} of width {size.hidden_size}"),
            ("blocks", f"{size.depth} with {size.num_heads} heads"),
            ("classes", f"{config.network.num_classes}"),
            ("steps", f"{round(1000 * training.total_kimg / training.batch_size):,} of {training.batch_size}"),
            ("trainable parameters", shown_count(trainable)),
            ("fixed positions", shown_count(count_parameters(network) - trainable)),
            (
                "memory per rank",
                f"about {memory / 1e9:.2f} GB in fp32: weights, gradients, Adam, EMA, activations{without}",
            ),
            ("FLOPs per kimg", f"{flops_per_kimg / 1e12:.1f} TFLOP: forward and backward{without}"),
            ("time per kimg", shown_time(flops_per_kimg, gemm_flops_per_second(pick_device(config.run.device)), ranks)),
        ]
    )


def _forward(network: DiffusionTransformer, batch: int) -> object:
    """A forward pass of training, on made-up inputs."""
    c, meta = network.config, torch.device("meta")
    x = torch.empty(batch, c.in_channels, c.input_size, c.input_size, device=meta)
    t, y = torch.empty(batch, device=meta), torch.zeros(batch, dtype=torch.int64, device=meta)
    if isinstance(network, REGSiT):
        return network(x, t, y, torch.empty(batch, c.z_dims[0], device=meta))
    return network(x, t, y)
