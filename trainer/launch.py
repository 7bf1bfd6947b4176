"""From a checked configuration to a finished run: processes, device, data, system, trainer."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

import torch

from common.distributed import finalise, initialise, on_rank_0, pick_device, rank, world_size
from common.lock import locked
from common.registry import import_object
from data.pipeline import TrainingData
from trainer.config import TrainingConfig
from trainer.signals import STOPPED_EXIT_CODE
from trainer.systems import SYSTEMS
from trainer.trainer import Trainer

if TYPE_CHECKING:
    from configs.schema import VFMVAEExperiment


def launch(config: VFMVAEExperiment) -> int:
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
        data = TrainingData(
            config.data,
            seed=config.run.random_seed,
            global_batch=config.training.batch_size,
            micro_batch=config.training.batch_size // (world_size() * config.training.accumulate_gradients),
            rank=rank(),
            world_size=world_size(),
            accumulate=config.training.accumulate_gradients,
            pin_memory=device.type == "cuda",
        )
        system = import_object(SYSTEMS[config.system])(config, device)
        finished = Trainer(config, system, data, device).run()
    return 0 if finished else STOPPED_EXIT_CODE


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
