"""What a system has timed: the records between `trainer/benchmark.py` and the systems' own files."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from common.errors import UserError
from data.skips import SkipCounter
from data.stream import MicroBatch
from trainer.config import TrainingConfig
from trainer.dry_run import kept_bytes
from trainer.systems.base import System
from trainer.trainer import Trainer

if TYPE_CHECKING:
    from configs.experiment import Experiment


@dataclass(frozen=True)
class Request:
    """What is to be measured.

    Attributes:
        config: of a run.
        device: where.
        batch_size: samples per step; None: a micro-batch of the configuration on one rank.
        scratch: an empty folder, for files that stand in for others and for what pipelines read and write.
        pipelines: whether these are measured.
    """

    config: Experiment
    device: torch.device
    batch_size: int | None
    scratch: Path
    pipelines: bool


@dataclass(frozen=True)
class Call:
    """A part.

    Attributes:
        run: does it once.
        times: what `run` does is a sample of the part, which takes so many times as long.
        is_compiled: it runs compiled programs, which counting FLOPs does not warm up.
    """

    run: Callable[[], Any]
    times: float = 1.0
    is_compiled: bool = False


@dataclass(frozen=True)
class FigureRule:
    """A number that is told besides.

    Attributes:
        value: computes it from the fastest runs: seconds of parts, images per second of pipelines, by name.
        unit: of it.
        meaning: what it is, in a few words.
    """

    value: Callable[[Mapping[str, float]], float]
    unit: str
    meaning: str


@dataclass(frozen=True)
class Plan:
    """What a system has timed.

    Attributes:
        parts: by name, run in this order in every turn; a word where there is no such part: `none`, `unknown` (its size
            is), `left out`.
        setting: `inputs`, of what a batch consists, in words; `precision`; what else the numbers depend on.
        left_out: what is not measured, by name, with the reason.
        encoder_weights: see `Measurements`.
        figures: by name.
        pipelines: by name; each goes through some images and returns how many a second.
    """

    parts: Mapping[str, Call | str]
    setting: dict[str, Any]
    left_out: dict[str, str]
    encoder_weights: str = "none"
    figures: Mapping[str, FigureRule] = field(default_factory=dict)
    pipelines: Mapping[str, Callable[[], float]] = field(default_factory=dict)


def ratio(numerator: str, denominator: str, meaning: str) -> dict[str, FigureRule]:
    """One part or pipeline over another, by the name that says so."""
    rule = FigureRule(lambda fastest: fastest[numerator] / fastest[denominator], "times", meaning)
    return {f"{numerator}_over_{denominator}": rule}


def overlap(pipeline: str) -> dict[str, FigureRule]:
    """A pipeline over the networks' share of it (`bare_...`), and over this and the files' (`..._files`) in a row."""
    bare, files = f"bare_{pipeline}", f"{pipeline}_files"
    one_after_the_other = FigureRule(
        lambda fastest: fastest[pipeline] * (1 / fastest[bare] + 1 / fastest[files]),
        "times",
        f"{pipeline} over networks and files one after the other",
    )
    return {
        **ratio(pipeline, bare, f"{pipeline} over its networks alone"),
        f"{pipeline}_over_its_parts": one_after_the_other,
    }


# --- what all systems need -------------------------------------------------------------------------------------------


def on_one_rank(training: TrainingConfig, batch_size: int | None, left_out: dict[str, str]) -> TrainingConfig:
    """The `training` section for steps of one micro-batch in this process; what goes is added to `left_out`."""
    if training.precision == "fp16":
        left_out["fp16"] = "runs in fp32 here"
    changes = {
        "batch_size": batch_size or training.batch_size // training.accumulate_gradients,
        "accumulate_gradients": 1,
        "precision": "fp32" if training.precision == "fp16" else training.precision,
    }
    return training.model_copy(update=changes)


def measurable_network(
    request: Request,
    build_network: Callable[[Any], nn.Module],
    training_pass: Callable[[nn.Module, int], object],
    left_out: dict[str, str],
) -> Any:
    """The configuration of steps of a system with one network that can be measured; what goes is added to `left_out`.

    Args:
        build_network: from the configuration.
        training_pass: a forward pass of training on so many made-up samples, on the meta device.

    Raises: UserError if the batch cannot fit into memory.
    """
    if request.pipelines:
        left_out["pipelines"] = "this system has none that are measured"
    training = on_one_rank(request.config.training, request.batch_size, left_out)
    config = request.config.model_copy(update={"training": training})
    with torch.device("meta"):
        network = build_network(config)
    kept = kept_bytes(lambda: training_pass(network, training.batch_size))
    require_memory(kept / (2 if training.precision == "bf16" else 1), training.batch_size, request.device)
    return config


class _NoData:
    """In place of the training data: it never ends, and nothing is ever bad."""

    steps = None
    skips = SkipCounter(0)


def training_calls(
    config: Experiment, system: System, batch: MicroBatch, device: torch.device, left_out: dict[str, str]
) -> dict[str, Call]:
    """A training step on a batch, as `step`, and before it each of its phases.

    Args:
        left_out: is told if the guard refuses steps on such a batch, whose optimiser then does nothing.
    """
    trainer = Trainer(config, system, _NoData(), device)
    phases = [phase for phase in system.phases if system.takes_part(phase, trainer.nimg)]
    is_compiled = getattr(config.training, "compile", False)
    calls = {
        phase.name: Call(lambda phase=phase: trainer.train_phase(phase, [batch], {}), is_compiled=is_compiled)
        for phase in phases
    }

    def step() -> None:
        trainer.train_step(itertools.repeat(batch))
        if trainer.guard.in_a_row > 0:
            left_out["optimiser"] = "the guard refused the step on made-up data; its update and the EMA did not run"

    return calls | {"step": Call(step, is_compiled=is_compiled)}


def require_memory(needed: float, batch_size: int, device: torch.device) -> None:
    """Refuse a batch whose activations alone exceed the memory, before the machine runs out of it.

    Args:
        needed: bytes of activations that a training step keeps.

    Raises: UserError.
    """
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
    else:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise UserError(
            f"batch size {batch_size}: a training step keeps about {needed / 1e9:.0f} GB of activations, and there are "
            f"{memory / 1e9:.0f} GB of memory; use a smaller --batch-size."
        )
