"""What the experiments that train a diffusion model on prefetched latents have in common. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from configs.experiment import Experiment

if TYPE_CHECKING:
    from data.config import LatentDataConfig
    from networks.diffusion.config import TransformerConfig
    from trainer.config import DiffusionAdamConfig, DiffusionTrainingConfig


class DiffusionExperiment(Experiment):
    """A run that trains a diffusion model; how it is sampled later may change at any time.

    As in `Experiment`, each system declares these sections itself.
    """

    MAY_CHANGE: ClassVar[tuple[str, ...]] = (*Experiment.MAY_CHANGE, "network.use_checkpoint", "sample")

    if TYPE_CHECKING:
        data: LatentDataConfig
        network: TransformerConfig
        optimizer: DiffusionAdamConfig
        training: DiffusionTrainingConfig
