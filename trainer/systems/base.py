"""What a system provides to the trainer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from common.distributed import rank, world_size
from data.stream import Share, TrainingStream
from evaluation.validation import ValidationResult
from networks.checkpoint.origin import Origin
from trainer.config import AdamConfig, TrainingConfig

if TYPE_CHECKING:
    from configs.experiment import Experiment

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def whole_pass_precision(training: TrainingConfig, device: torch.device) -> torch.autocast:
    """In which a network computes whose every layer may run in `training.precision`; losses are fp32."""
    chosen = _AUTOCAST.get(training.precision)
    return torch.autocast(device.type, dtype=chosen, enabled=chosen is not None)


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


def share_of_rank(training: TrainingConfig, pin_memory: bool) -> Share:
    """What this rank takes of every step."""
    accumulate = training.accumulate_gradients
    return Share(
        global_batch=training.batch_size,
        micro_batch=training.batch_size // (world_size() * accumulate),
        rank=rank(),
        world_size=world_size(),
        accumulate=accumulate,
        pin_memory=pin_memory,
    )


@dataclass(frozen=True)
class Phase:
    """A part of the step with an optimiser of its own.

    Attributes:
        name: e.g. `generator`; the metrics carry it.
        module: the network that it trains, wrapped for many processes; its gradients are synchronised there.
        parameters: what the optimiser changes, by name.
        optimizer: options of the optimiser.
        reconstruction_losses: reported values that the guard watches for jumps.
        bounded_losses: reported values that the guard keeps within bounds, with their bounds.
    """

    name: str
    module: nn.Module
    parameters: dict[str, nn.Parameter]
    optimizer: AdamConfig
    reconstruction_losses: frozenset[str] = frozenset()
    bounded_losses: Mapping[str, float] = field(default_factory=dict)

    @property
    def gradient_norm(self) -> str:
        """Name of its gradient norm among the reported values."""
        return f"gradient_norm/{self.name}"


@dataclass(frozen=True)
class Initial:
    """What a new run took from an earlier one.

    Attributes:
        taken: what it was, in a sentence.
        origin: where those weights came from, if not from training from scratch with this project.
    """

    taken: str
    origin: Origin | None


@dataclass(frozen=True)
class Pictures:
    """Images to look at, each with what the EMA makes of it.

    Attributes:
        name: of the grid's file.
        inputs, outputs: uint8 [N, 3, H, W], of one size.
    """

    name: str
    inputs: Tensor
    outputs: Tensor


class ValidationPlan(Protocol):
    """What a system measures again and again.

    Attributes:
        every_ticks: ticks between validations; the last tick always has one.
        best_metric: what the best checkpoint is chosen by; None: none is.
    """

    every_ticks: int
    best_metric: str | None

    def fingerprint(self) -> str:
        """Equal ones give numbers that compare."""
        ...


@dataclass(frozen=True)
class Prepared:
    """What a run needs: this rank's data, and what is trained."""

    data: TrainingStream
    system: System


class System(Protocol):
    """Which networks there are, what one step does, and what is logged.

    Attributes:
        phases: run in this order in a step; each has an optimiser.
        networks: everything whose weights a checkpoint keeps, by name of its file's prefix.
        averages: the EMA of (some of) these networks, by the same name.
        validation: what it measures in between; None: nothing.
        sample_ticks: ticks between grids of samples; None: there are none.
    """

    phases: list[Phase]
    networks: dict[str, nn.Module]
    averages: dict[str, nn.Module]
    validation: ValidationPlan | None
    sample_ticks: int | None

    @classmethod
    def prepare(cls, config: Experiment, device: torch.device, pin_memory: bool) -> Prepared:
        """Open the data of a run, then build its networks; every rank must call it.

        Raises: UserError for what a user can put right.
        """
        ...

    @staticmethod
    def describe(config: Experiment, ranks: int) -> str:
        """For `--dry-run`: shapes, parameters, and estimates of memory and time, without weights or data."""
        ...

    def ema_beta(self, nimg: int) -> float:
        """What the averages keep of their values in the step that ends after `nimg` images."""
        ...

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
        """Weights of frozen parts that a checkpoint is to include."""
        ...

    def write_frozen_files(self, folder: Path) -> None:
        """Write what else it takes to build the frozen parts that a checkpoint includes."""
        ...

    def load_initial(self, path: str) -> Initial:
        """Take the weights of an earlier run. Raises UserError if they do not fit."""
        ...

    def summary(self) -> str:
        """Sizes of the networks, for the start of the log."""
        ...

    def sample_grid(self, data: TrainingStream) -> Pictures:
        """The images of a grid of samples; called on rank 0. Raises UserError if there are none this time."""
        ...

    def validate(self) -> ValidationResult:
        """Measure the EMA by the plan; every rank must call it."""
        ...
