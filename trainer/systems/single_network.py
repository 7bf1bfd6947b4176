"""What the systems have in common that train one network with one optimiser, and average its weights."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from common.random import keyed_seed
from evaluation.validation import ValidationResult
from networks.checkpoint.origin import Origin
from trainer.freeze import trained_parameters
from trainer.parallel import distribute
from trainer.systems.base import Initial, MicroStep, Phase, Pictures, whole_pass_precision

if TYPE_CHECKING:
    from configs.generator import GeneratorExperiment
    from data.stream import TrainingStream

PHASE = "backbone"


class SingleNetworkSystem(ABC):
    """A network, its EMA and its one optimiser. A subclass says what a step compares.

    Args:
        config: the run's configuration.
        device: where the networks live.

    Attributes:
        model_type: what a checkpoint's `config.json` calls it.
        watched_loss: the reported value that the guard watches for jumps.
    """

    model_type: ClassVar[str]
    watched_loss: ClassVar[str]

    validation = None
    sample_ticks = None

    def __init__(self, config: GeneratorExperiment, device: torch.device):
        self.config, self.device = config, device
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
    def build_network(config: GeneratorExperiment) -> nn.Module:
        """The network with initial weights."""

    def trained_module(self) -> nn.Module:
        """The network, or a module around it, whose `forward` a step calls: DDP averages the gradients of that."""
        return self.network

    @abstractmethod
    def losses(self, batch: Any) -> dict[str, Tensor]:
        """Forward pass of a micro-batch: scalars to log; `loss/total` is minimised."""

    @abstractmethod
    def about_data(self) -> dict[str, Any]:
        """What it takes to use what the network generates; a checkpoint's `config.json` keeps it beside the network."""

    @staticmethod
    @abstractmethod
    def load_weights(network: nn.Module, path: str, weights: Literal["ema", "raw"]) -> Origin | None:
        """Copy the weights of an earlier run or of the reference; returns their origin. Raises CheckpointError."""

    # --- a run -----------------------------------------------------------------------------------------------------

    def ema_beta(self, nimg: int) -> float:
        """The same in every step."""
        return self.config.training.ema_decay

    def takes_part(self, phase: Phase, nimg: int) -> bool:
        """There is one phase, and it is trained in every step."""
        return True

    def backward(self, phase: Phase, batch: Any, at: MicroStep) -> dict[str, Tensor]:
        """One micro-batch."""
        report = self.losses(batch)
        (report["loss/total"] * at.share).backward()
        return {name: value.detach() for name, value in report.items()}

    def precision(self) -> torch.autocast:
        """In which the network computes; losses are fp32."""
        return whole_pass_precision(self.config.training, self.device)

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
        """The network, and what it takes to sample it."""
        network = self.config.network.model_dump(mode="json")
        return {"model_type": self.model_type, "network": network, **self.about_data()}

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
        self.load_weights(self.network, path, "raw")
        origin = self.load_weights(self.average, path, "ema")
        return Initial(f"weights and EMA of the network from {path}", origin)

    def summary(self) -> str:
        trained = sum(p.numel() for p in self.phases[0].parameters.values())
        fixed = sum(p.numel() for p in self.network.parameters()) - trained
        return f"{self.model_type}: {trained:,} trainable parameters" + (f", {fixed:,} fixed." if fixed else ".")

    def sample_grid(self, data: TrainingStream) -> Pictures:
        raise AssertionError("this system shows no pictures")

    def validate(self) -> ValidationResult:
        raise AssertionError("there is nothing to validate by")
