"""What the configurations of all systems have in common. Imports no torch."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, ClassVar

from common.config import Relation, StrictModel

if TYPE_CHECKING:
    from trainer.config import CheckpointConfig, GuardConfig, LoggingConfig, RunConfig, TrainingConfig

# What may differ between a checkpoint and the run that resumes it, whatever is trained: where things are, and how much
# of them. Everything else would be another run.
MAY_CHANGE = (
    "run.run_dir",
    "run.device",
    "data.path",
    "data.workers",
    "data.prefetch_batches",
    "training.total_kimg",
    "training.accumulate_gradients",
    "training.init_from",
    "training.cudnn_benchmark",
    "checkpoint",
    "logging",
)


class Experiment(StrictModel):
    """A run of a system.

    Each system's experiment declares these sections itself, in the order in which its files are read, and adds its own;
    the trainer knows them by the base classes that are named here.

    Attributes:
        RELATIONS: rules between its keys, `COMMON_RELATIONS` among them.
        PATHS: keys that name files or folders.
        MODELS: keys that name a model (or several), each by a folder or a hub id.
        REMEDIES: what to do where a path is missing, by key.
        MAY_CHANGE: keys and sections that a resumed run may change.
    """

    RELATIONS: ClassVar[tuple[Relation, ...]]
    PATHS: ClassVar[tuple[str, ...]] = ("data.path", "training.init_from")
    MODELS: ClassVar[tuple[str, ...]] = ()
    REMEDIES: ClassVar[dict[str, str]] = {}
    MAY_CHANGE: ClassVar[tuple[str, ...]] = MAY_CHANGE

    if TYPE_CHECKING:
        system: str
        run: RunConfig
        training: TrainingConfig
        guard: GuardConfig
        checkpoint: CheckpointConfig
        logging: LoggingConfig


# --- relations that hold for all -------------------------------------------------------------------------------------


def ranks() -> int:
    """Number of processes that torchrun has started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", 1))


def micro_batches(c: Experiment) -> int:
    """Micro-batches per optimiser step, over all ranks."""
    return ranks() * c.training.accumulate_gradients


def _batch_divides(c: Any) -> str | None:
    if c.training.batch_size % micro_batches(c):
        return (
            f"{c.training.batch_size} is not divisible by {ranks()} ranks x "
            f"training.accumulate_gradients {c.training.accumulate_gradients}."
        )
    return None


def _total_after_start(c: Any) -> str | None:
    if c.training.total_kimg <= c.training.init_kimg:
        return f"found {c.training.total_kimg:g}, expected more than training.init_kimg {c.training.init_kimg:g}."
    return None


def _optimizer_comes_from_a_run(c: Any) -> str | None:
    if c.training.init_optimizer and c.training.init_from is None:
        return "true, but training.init_from names no run to take it from."
    return None


COMMON_RELATIONS = (
    Relation(("training.batch_size", "training.accumulate_gradients"), _batch_divides),
    Relation(("training.total_kimg", "training.init_kimg"), _total_after_start),
    Relation(("training.init_optimizer", "training.init_from"), _optimizer_comes_from_a_run),
)
