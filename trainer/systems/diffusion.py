"""What the systems that train a diffusion model on prefetched latents have in common.

Everything that is drawn for a sample is keyed by the seed and the sample's position, which counts on from step to step:
so a step computes the same however ranks and accumulation share it, and a resumed run needs no hidden state.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from common.random import keyed_seed
from data.latent_batches import LatentBatch, LatentStream, TrainingLatents
from evaluation.validation import ValidationResult
from networks.diffusion.config import TransformerConfig
from networks.diffusion.folder import load_diffusion_weights
from networks.diffusion.transformer import DiffusionTransformer
from networks.layers.labels import drop_labels
from trainer.freeze import trained_parameters
from trainer.parallel import distribute
from trainer.systems.base import Initial, MicroStep, Phase, Pictures, Prepared, share_of_rank

if TYPE_CHECKING:
    from configs.diffusion import DiffusionExperiment

PHASE = "backbone"
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


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


class DiffusionSystem(ABC):
    """A diffusion transformer, its EMA and its one optimiser. A subclass says what a step compares.

    Args:
        config: the run's configuration.
        device: where the networks live.
        latents: what it is trained on.

    Attributes:
        model_type: what a checkpoint's `config.json` calls it.
        watched_loss: the reported value that the guard watches for jumps.
    """

    model_type: ClassVar[str]
    watched_loss: ClassVar[str]

    validation = None
    sample_ticks = None

    def __init__(self, config: DiffusionExperiment, device: torch.device, latents: TrainingLatents):
        self.config, self.device, self.normalisation = config, device, latents.normalisation
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(keyed_seed(config.run.random_seed, "initial weights"))
            network = self.build_network(config)
        self.network = network.to(device).train()
        self.average = copy.deepcopy(self.network).eval().requires_grad_(False)
        self.networks: dict[str, nn.Module] = {PHASE: self.network}
        self.averages: dict[str, nn.Module] = {PHASE: self.average}
        self.model = distribute(self.trained_module())
        watched = frozenset({self.watched_loss})
        parameters = trained_parameters(self.network)
        self.phases = [Phase(PHASE, self.model, parameters, config.optimizer, reconstruction_losses=watched)]

    # --- what a subclass says ------------------------------------------------------------------------------------

    @staticmethod
    @abstractmethod
    def open_latents(config: DiffusionExperiment) -> TrainingLatents:
        """The folder of latents that a configuration names."""

    @staticmethod
    @abstractmethod
    def build_network(config: DiffusionExperiment) -> DiffusionTransformer:
        """The network with initial weights."""

    @staticmethod
    @abstractmethod
    def draws(config: DiffusionExperiment) -> TrainingDraws:
        """What is drawn for every sample."""

    def trained_module(self) -> nn.Module:
        """The network, or a module around it, whose `forward` a step calls: DDP averages the gradients of that."""
        return self.network

    @abstractmethod
    def losses(self, batch: LatentBatch) -> dict[str, Tensor]:
        """Forward pass of a micro-batch: scalars to log; `loss/total` is minimised."""

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

    def ema_beta(self, nimg: int) -> float:
        """The same in every step."""
        return self.config.training.ema_decay

    def takes_part(self, phase: Phase, nimg: int) -> bool:
        """There is one phase, and it is trained in every step."""
        return True

    # --- a step ----------------------------------------------------------------------------------------------------

    def backward(self, phase: Phase, batch: LatentBatch, at: MicroStep) -> dict[str, Tensor]:
        """One micro-batch."""
        report = self.losses(batch)
        (report["loss/total"] * at.share).backward()
        return {name: value.detach() for name, value in report.items()}

    def precision(self) -> AbstractContextManager:
        """In which the network computes; losses are fp32."""
        chosen = _AUTOCAST.get(self.config.training.precision)
        return torch.autocast(self.device.type, dtype=chosen, enabled=chosen is not None)

    def to_device(self, value: Any) -> Any:
        """A tensor, or a mapping of tensors, where the network is."""
        if isinstance(value, Mapping):
            return {name: self.to_device(tensor) for name, tensor in value.items()}
        return value.to(self.device, non_blocking=True)

    def after_step(self, values: Mapping[str, float]) -> None:
        """Nothing follows a step."""
        assert "loss/total" in values

    # --- checkpoints -----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Positions and weights say it all."""
        assert not state

    def model_config(self) -> dict[str, Any]:
        """The network and the statistics of its latents: what it takes to sample."""
        latents = {
            "mean": self.normalisation.mean.flatten().tolist(),
            "std": self.normalisation.std.flatten().tolist(),
            "multiplier": self.normalisation.multiplier,
        }
        return {
            "model_type": self.model_type,
            "network": self.config.network.model_dump(mode="json"),
            "latents": latents,
        }

    def facts(self) -> dict[str, Any]:
        return {}

    def require_same_frozen_parts(self, manifest: Mapping[str, Any], where: str) -> None:
        """There are none, unless a system states facts about some."""
        assert not self.facts()

    def frozen_tensors(self) -> dict[str, Tensor]:
        return {}

    def write_frozen_files(self, folder: Path) -> None:
        """No checkpoint includes frozen parts."""
        assert not self.frozen_tensors()

    def load_initial(self, path: str) -> Initial:
        load_diffusion_weights(self.network, path, "raw")
        origin = load_diffusion_weights(self.average, path, "ema")
        return Initial(f"weights and EMA of the network from {path}", origin)

    def summary(self) -> str:
        trained = sum(p.numel() for p in self.phases[0].parameters.values())
        frozen = sum(p.numel() for p in self.network.parameters()) - trained
        return f"{self.model_type}: {trained:,} trainable parameters, {frozen:,} fixed (positions)."

    def sample_grid(self, data: LatentStream) -> Pictures:
        raise AssertionError("latents have no pictures")

    def validate(self) -> ValidationResult:
        raise AssertionError("there is nothing to validate by")
