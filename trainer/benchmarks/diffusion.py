"""What the benchmarks of the diffusion models have in common: made-up latents, and the parts of their plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from common.random import torch_generator
from data.latent_batches import LatentBatch
from data.latents import LatentNormalisation
from trainer.benchmarks.plan import Call, Plan, Request, measurable_network, training_calls
from trainer.diffusion_dry_run import training_pass
from trainer.systems.diffusion import DiffusionSystem, TrainingDraws

if TYPE_CHECKING:
    from configs.diffusion import DiffusionExperiment


@dataclass(frozen=True)
class MadeUpTokens:
    """In place of tokens of target encoders that were computed beforehand."""

    widths: Sequence[int]
    encoders: ClassVar = {"sha256": "made up"}

    def require_tokens(self, count: int) -> None:
        """There are as many as are asked for."""
        assert count > 0


@dataclass(frozen=True)
class MadeUpLatents:
    """In place of a folder of latents, normalised already."""

    channels: int
    tokens: MadeUpTokens | None = None

    @property
    def normalisation(self) -> LatentNormalisation:
        return LatentNormalisation(torch.zeros(self.channels, 1, 1), torch.ones(self.channels, 1, 1))


def measurable(request: Request, system: type[DiffusionSystem], left_out: dict[str, str]) -> DiffusionExperiment:
    """The configuration of steps that can be measured; what goes is added to `left_out`.

    Raises: UserError if the batch cannot fit into memory.
    """
    left_out["data"] = "reading latents and drawing noise; both are made up"
    return measurable_network(request, system.build_network, training_pass, left_out)


def made_up_batch(config: DiffusionExperiment, draws: TrainingDraws, **more: Any) -> LatentBatch:
    """A micro-batch of random latents, with what is drawn for each.

    Args:
        more: attributes of the batch besides.
    """
    count, c = config.training.batch_size, config.network
    generator = torch_generator(0, "benchmark batch")
    labels = torch.arange(count) % c.num_classes
    drawn = [draws(int(label), generator) for label in labels]
    return LatentBatch(
        z=torch.randn(count, *c.latent_shape(), generator=generator),
        labels=labels,
        positions=range(count),
        drawn={name: torch.stack([row[name] for row in drawn]) for name in drawn[0]},
        **more,
    )


def plan_of(
    system: DiffusionSystem,
    forward: Callable[[Tensor, Tensor], Any],
    batch: LatentBatch,
    left_out: dict[str, str],
    encoder_weights: str = "none",
) -> Plan:
    """The plan of a diffusion model.

    Args:
        forward: (latents [B, C, h, w], labels [B]) -> velocity of a guided step.
    """
    config, device = system.config, system.device
    c, count = config.network, config.training.batch_size
    x, y = batch.z.to(device), batch.labels.to(device)
    return Plan(
        parts={
            "forward": Call(torch.inference_mode()(lambda: forward(x, y))),
            "step": training_calls(config, system, batch, device, left_out)["step"],
        },
        setting={
            "inputs": f"{count} latent{'s' if count > 1 else ''} of {c.input_size} x {c.input_size} x {c.in_channels}",
            "batch_size": count,
            "precision": config.training.precision,
            "guided": config.sample.cfg_scale > 1,
        },
        left_out=left_out,
        encoder_weights=encoder_weights,
    )
