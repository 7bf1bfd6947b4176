"""The experiment `reg`: SiT with REG's entangled class token, on prefetched latents. Imports no torch."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from common.config import Relation, in_section
from configs.diffusion import DiffusionExperiment
from configs.experiment import COMMON_RELATIONS
from data.config import REGDataConfig
from evaluation.diffusion.config import REG_SAMPLING_RELATIONS, REGSamplingConfig
from losses.config import REGLossConfig
from networks.diffusion.config import REG_RELATIONS, REGSiTConfig, TargetConfig
from trainer.config import (
    CheckpointConfig,
    DiffusionAdamConfig,
    DiffusionTrainingConfig,
    GuardConfig,
    LoggingConfig,
    RunConfig,
)


def _one_width_per_target(c: REGExperiment) -> str | None:
    widths, names = c.network.z_dims, c.target.vfm_names
    if len(widths) != len(names):
        return f"{len(widths)} widths {widths} for {len(names)} target encoders {names}; give one for each."
    return None


class REGExperiment(DiffusionExperiment):
    """A run of the system `reg`: training of SiT on latents and class tokens that are denoised together."""

    RELATIONS: ClassVar = (
        *COMMON_RELATIONS,
        *in_section("network", REG_RELATIONS),
        *in_section("sample", REG_SAMPLING_RELATIONS),
        Relation(("network.z_dims", "target.vfm_names"), _one_width_per_target),
    )
    PATHS: ClassVar = (*DiffusionExperiment.PATHS, "data.features_path")
    MODELS: ClassVar = ("target.vfm_names",)
    MAY_CHANGE: ClassVar = (*DiffusionExperiment.MAY_CHANGE, "data.features_path", "target.vfm_names")

    system: Literal["reg"] = Field("reg", description="What is trained.")
    run: RunConfig
    data: REGDataConfig
    network: REGSiTConfig
    target: TargetConfig = TargetConfig()
    loss: REGLossConfig = REGLossConfig()
    optimizer: DiffusionAdamConfig = DiffusionAdamConfig(max_grad_norm=1.0)
    training: DiffusionTrainingConfig
    guard: GuardConfig = GuardConfig()
    sample: REGSamplingConfig = REGSamplingConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    logging: LoggingConfig = LoggingConfig()
