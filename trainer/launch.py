"""From a checked configuration to a finished run: processes, device, data, system, trainer."""

from __future__ import annotations

import contextlib
import logging
import os
from typing import TYPE_CHECKING

import torch

from common.distributed import finalise, initialise, on_rank_0, pick_device, rank, world_size
from common.lock import locked
from common.registry import import_object
from trainer.config import TrainingConfig
from trainer.signals import STOPPED_EXIT_CODE
from trainer.systems import SYSTEMS
from trainer.systems.base import System
from trainer.trainer import Trainer

if TYPE_CHECKING:
    from configs.experiment import Experiment


def launch(config: Experiment) -> int:
    """Run a training on this process's share of the devices; returns the process's exit code.

    Raises: UserError for what a user can put right.
    """
    device = pick_device(config.run.device)
    initialise(device)
    with contextlib.ExitStack() as held:
        held.callback(finalise)
        _start_logging()
        on_rank_0(lambda: held.enter_context(locked(config.run.run_dir)))
        set_up_numerics(config.training)
        run = system_class(config).prepare(config, device, pin_memory=device.type == "cuda")
        finished = Trainer(config, run.system, run.data, device).run()
    return 0 if finished else STOPPED_EXIT_CODE


def describe(config: Experiment) -> str:
    """What `--dry-run` prints, for as many ranks as torchrun has started."""
    return system_class(config).describe(config, int(os.environ.get("WORLD_SIZE", 1)))


def system_class(config: Experiment) -> type[System]:
    """The system that a configuration names."""
    return import_object(SYSTEMS[config.system])


def _start_logging() -> None:
    """Messages on stderr: all of rank 0's, warnings of the others, with their rank."""
    logging.basicConfig(
        level=logging.INFO if rank() == 0 else logging.WARNING,
        format=f"%(asctime)s rank {rank()}: %(message)s" if world_size() > 1 else "%(asctime)s %(message)s",
        datefmt="%H:%M:%S",
        force=True,
    )


def set_up_numerics(config: TrainingConfig) -> None:
    """Kernels as the configuration wants them; products in fp32 are never rounded to TF32."""
    torch.backends.cudnn.benchmark = config.cudnn_benchmark
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
