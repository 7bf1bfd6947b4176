"""What the experiments that train a diffusion model on prefetched latents have in common. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from configs.generator import GeneratorExperiment

if TYPE_CHECKING:
    from data.config import LatentDataConfig
    from networks.diffusion.config import TransformerConfig
    from trainer.config import DiffusionAdamConfig, DiffusionTrainingConfig


class DiffusionExperiment(GeneratorExperiment):
    """A run that trains a diffusion model. As in `Experiment`, each system declares these sections itself."""

    if TYPE_CHECKING:
        data: LatentDataConfig
        network: TransformerConfig
        optimizer: DiffusionAdamConfig
        training: DiffusionTrainingConfig
