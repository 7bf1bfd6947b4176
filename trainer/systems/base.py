"""What a system provides to the trainer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from evaluation.reconstruction import Protocol as Reconstruction
from trainer.config import AdamConfig


@dataclass(frozen=True)
class MicroStep:
    """Where in the run a micro-batch stands; the key of everything random about it.

    Attributes:
        seed: the run's seed.
        step: optimiser steps before this one.
        nimg: images seen before this step.
        micro_batch: index of the micro-batch among all of this step, over all ranks.
        is_first: the first micro-batch of this step on its rank; only then state that follows the data advances.
        share: factor of its gradient: the loss scale over the micro-batches per rank; the mean over ranks is taken
            elsewhere.
    """

    seed: int
    step: int
    nimg: int
    micro_batch: int
    is_first: bool
    share: float


@dataclass(frozen=True)
class Phase:
    """A part of the step with an optimiser of its own.

    Attributes:
        name: e.g. `generator`; the metrics carry it.
        module: the network that it trains, wrapped for many processes; its gradients are synchronised there.
        parameters: what the optimiser changes, by name.
        optimizer: options of the optimiser.
        reconstruction_losses: reported values that the guard watches for jumps.
        bounded_losses: reported values that the guard keeps within bounds.
    """

    name: str
    module: nn.Module
    parameters: dict[str, nn.Parameter]
    optimizer: AdamConfig
    reconstruction_losses: frozenset[str] = frozenset()
    bounded_losses: frozenset[str] = frozenset()

    @property
    def gradient_norm(self) -> str:
        """Name of its gradient norm among the reported values."""
        return f"gradient_norm/{self.name}"


class System(Protocol):
    """Which networks there are, what one step does, and what is logged.

    Attributes:
        phases: run in this order in a step; each has an optimiser.
        networks: everything whose weights a checkpoint keeps, by name of its file's prefix.
        averages: the EMA of (some of) these networks, by the same name.
    """

    phases: list[Phase]
    networks: dict[str, nn.Module]
    averages: dict[str, nn.Module]

    def takes_part(self, phase: Phase, nimg: int) -> bool:
        """Whether a phase has anything to train after `nimg` images; the step leaves it out otherwise."""
        ...

    def after_step(self, values: Mapping[str, float]) -> None:
        """Look at an accepted step: what its phases reported, as means over all ranks."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """State besides the networks, for a checkpoint; JSON values."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        ...

    def backward(self, phase: Phase, batch: Any, at: MicroStep) -> Mapping[str, Tensor]:
        """Forward and backward pass of one micro-batch in one phase; gradients add up. Returns scalars to log."""
        ...

    def model_config(self) -> dict[str, Any]:
        """What a checkpoint's `config.json` says, enough to build the model again."""
        ...

    def facts(self) -> dict[str, Any]:
        """What a manifest records besides: the identity of frozen parts."""
        ...

    def require_same_frozen_parts(self, manifest: Mapping[str, Any], where: str) -> None:
        """Raise CheckpointError if the facts of a manifest tell of other frozen parts than this run has."""
        ...

    def frozen_tensors(self) -> dict[str, Tensor]:
        """Weights of frozen parts, for checkpoints that include them."""
        ...

    def write_frozen_files(self, folder: Path) -> None:
        """Write what else it takes to build the frozen parts, for checkpoints that include them."""
        ...

    def load_initial(self, path: str, with_discriminators: bool) -> str:
        """Take the weights of an earlier run; returns what was taken, in a sentence."""
        ...

    def summary(self) -> str:
        """Sizes of the networks, for the start of the log."""
        ...

    def sample_images(self, batch: Any) -> Tensor:
        """What the EMA makes of the images of a batch, uint8, for the sample grids."""
        ...

    def reconstruct(self, batch: Any, protocol: Reconstruction) -> Tensor:
        """What the EMA makes of a batch of uint8 images, uint8, as the tools would; for the validation."""
        ...
