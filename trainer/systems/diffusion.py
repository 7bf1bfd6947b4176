"""What the systems that train a diffusion model on prefetched latents have in common.

Everything that is drawn for a sample is keyed by the seed and the sample's position, which counts on from step to step:
so a step computes the same however ranks and accumulation share it, and a resumed run needs no hidden state.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from data.latent_batches import LatentStream, TrainingLatents
from networks.checkpoint.origin import Origin
from networks.diffusion.config import TransformerConfig
from networks.diffusion.folder import load_diffusion_weights
from networks.diffusion.transformer import DiffusionTransformer
from networks.layers.labels import drop_labels
from trainer.systems.base import Prepared, share_of_rank
from trainer.systems.single_network import SingleNetworkSystem

if TYPE_CHECKING:
    from configs.diffusion import DiffusionExperiment


@dataclass(frozen=True)
class TrainingDraws:
    """What is drawn for a sample: `t`, its time from 0 (data) to 1 (noise); `noise_0`, ..., standard normal draws; and
    `y`, its label or the null class.

    Args:
        times: (count, generator=) -> so many times.
        shapes: of the noises.
        network: says how often the null class takes a label's place.
    """

    times: Callable[..., Tensor]
    shapes: Sequence[Sequence[int]]
    network: TransformerConfig

    def __call__(self, label: int, generator: torch.Generator) -> dict[str, Tensor]:
        drawn = {"t": self.times(1, generator=generator)[0]}
        drawn |= {f"noise_{i}": torch.randn(*shape, generator=generator) for i, shape in enumerate(self.shapes)}
        y, dropped = torch.tensor([label]), self.network.class_dropout_prob
        if dropped:
            y = drop_labels(y, self.network.num_classes, dropped, generator)
        return drawn | {"y": y[0]}


class DiffusionSystem(SingleNetworkSystem):
    """A diffusion transformer on prefetched latents. A subclass says what a step compares.

    Args:
        config: the run's configuration.
        device: where the networks live.
        latents: what it is trained on.
    """

    config: DiffusionExperiment
    network: DiffusionTransformer

    def __init__(self, config: DiffusionExperiment, device: torch.device, latents: TrainingLatents):
        self.normalisation = latents.normalisation
        super().__init__(config, device)

    # --- what a subclass says ------------------------------------------------------------------------------------

    @staticmethod
    @abstractmethod
    def open_latents(config: DiffusionExperiment) -> TrainingLatents:
        """The folder of latents that a configuration names."""

    @staticmethod
    @abstractmethod
    def draws(config: DiffusionExperiment) -> TrainingDraws:
        """What is drawn for every sample."""

    # --- a run -----------------------------------------------------------------------------------------------------

    @classmethod
    def prepare(cls, config: DiffusionExperiment, device: torch.device, pin_memory: bool) -> Prepared:
        """Open the latents and see whether they fit, then build the network."""
        latents = cls.open_latents(config)
        latents.require_fit(config.network.latent_shape(), config.network.num_classes)
        share = share_of_rank(config.training, pin_memory)
        data = LatentStream(latents, config.data, config.run.random_seed, share, cls.draws(config))
        return Prepared(data, cls(config, device, latents))

    @classmethod
    def describe(cls, config: DiffusionExperiment, ranks: int) -> str:
        """Shapes, parameters, and estimates of memory and time per kimg."""
        from trainer.diffusion_dry_run import describe

        return describe(config, cls.build_network, ranks)

    def about_data(self) -> dict[str, Any]:
        """The statistics of the latents, which it takes to sample."""
        latents = {
            "mean": self.normalisation.mean.flatten().tolist(),
            "std": self.normalisation.std.flatten().tolist(),
            "multiplier": self.normalisation.multiplier,
        }
        return {"latents": latents}

    @staticmethod
    def load_weights(network: DiffusionTransformer, path: str, weights: Literal["ema", "raw"]) -> Origin | None:
        return load_diffusion_weights(network, path, weights)
