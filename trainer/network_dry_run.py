"""`--dry-run` of a run that trains one network: what it is and what a step costs, on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from common.distributed import pick_device
from evaluation.cost import count_flops, gemm_flops_per_second
from trainer.dry_run import (
    ADAM_BYTES_PER_PARAMETER,
    EMA_BYTES_PER_PARAMETER,
    as_table,
    count_parameters,
    kept_bytes,
    micro_batch_size,
    shown_count,
    shown_time,
)

if TYPE_CHECKING:
    from configs.generator import GeneratorExperiment


def split_of_a_step(config: GeneratorExperiment, ranks: int) -> str:
    """Into what a step is divided, in words."""
    return f"micro-batches of {micro_batch_size(config.training, ranks)} on {ranks} rank{'s' if ranks > 1 else ''}"


def describe_network(
    config: GeneratorExperiment,
    network: nn.Module,
    forward: Callable[[int], Any],
    rows: Sequence[tuple[str, str]],
    ranks: int,
    left_out: str = "",
) -> str:
    """Shapes, parameters, and estimates of memory and time per kimg, as a text.

    Args:
        network: on the meta device.
        forward: a forward pass of training on so many made-up samples.
        rows: what there is to say of its shapes.
        left_out: what the estimates do not count, with a space in front.
    """
    training, micro_batch = config.training, micro_batch_size(config.training, ranks)
    trainable = sum(p.numel() for p in network.parameters() if p.requires_grad)
    fixed = count_parameters(network) - trainable
    flops_per_kimg = 3 * count_flops(lambda: forward(micro_batch)) / micro_batch * 1000
    kept = kept_bytes(lambda: forward(micro_batch))
    memory = ADAM_BYTES_PER_PARAMETER * trainable + EMA_BYTES_PER_PARAMETER * count_parameters(network) + kept
    peak = gemm_flops_per_second(pick_device(config.run.device))
    return as_table(
        [
            *rows,
            ("steps", f"{round(1000 * training.total_kimg / training.batch_size):,} of {training.batch_size}"),
            ("trainable parameters", shown_count(trainable)),
            *([("fixed positions", shown_count(fixed))] if fixed else []),
            (
                "memory per rank",
                f"about {memory / 1e9:.2f} GB in fp32: weights, gradients, Adam, EMA, activations{left_out}",
            ),
            ("FLOPs per kimg", f"{flops_per_kimg / 1e12:.1f} TFLOP: forward and backward{left_out}"),
            ("time per kimg", shown_time(flops_per_kimg, peak, ranks)),
        ]
    )
