"""The experiment `lightningdit`: flow matching of prefetched latents by LightningDiT. Imports no torch."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from common.config import Relation, in_section
from configs.diffusion import DiffusionExperiment
from configs.experiment import COMMON_RELATIONS
from data.config import LightningDiTDataConfig
from evaluation.diffusion.config import LightningDiTSamplingConfig
from losses.config import TRANSPORT_RELATIONS, TransportConfig
from networks.diffusion.config import LIGHTNINGDIT_RELATIONS, LightningDiTConfig
from trainer.config import (
    CheckpointConfig,
    DiffusionAdamConfig,
    DiffusionTrainingConfig,
    GuardConfig,
    LoggingConfig,
    RunConfig,
)


def _cosine_needs_range(c: LightningDiTExperiment) -> str | None:
    """The gradient of the cosine at a velocity of 0, which every new network gives, is of the order of 1e8."""
    if c.training.precision != "fp16" or not c.transport.use_cosine_loss:
        return None
    return "found fp16, which cannot hold the first gradients of transport.use_cosine_loss; use bf16 or fp32."


class LightningDiTExperiment(DiffusionExperiment):
    """A run of the system `lightningdit`: training of LightningDiT on the latents of a tokenizer."""

    RELATIONS: ClassVar = (
        *COMMON_RELATIONS,
        *in_section("network", LIGHTNINGDIT_RELATIONS),
        *in_section("transport", TRANSPORT_RELATIONS),
        Relation(("training.precision", "transport.use_cosine_loss"), _cosine_needs_range),
    )

    system: Literal["lightningdit"] = Field("lightningdit", description="What is trained.")
    run: RunConfig
    data: LightningDiTDataConfig
    network: LightningDiTConfig
    transport: TransportConfig
    optimizer: DiffusionAdamConfig = DiffusionAdamConfig()
    training: DiffusionTrainingConfig
    guard: GuardConfig = GuardConfig()
    sample: LightningDiTSamplingConfig = LightningDiTSamplingConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    logging: LoggingConfig = LoggingConfig()
