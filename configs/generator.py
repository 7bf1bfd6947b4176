"""What the experiments that train a network which generates latents or tokens have in common. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from configs.experiment import Experiment

if TYPE_CHECKING:
    from networks.sizes import NamedSizeConfig
    from trainer.config import AdamConfig, GeneratorTrainingConfig


class GeneratorExperiment(Experiment):
    """A run that trains such a network; how it is sampled later may change at any time.

    As in `Experiment`, each system declares these sections itself.
    """

    MAY_CHANGE: ClassVar[tuple[str, ...]] = (*Experiment.MAY_CHANGE, "network.use_checkpoint", "sample")

    if TYPE_CHECKING:
        network: NamedSizeConfig
        optimizer: AdamConfig
        training: GeneratorTrainingConfig
