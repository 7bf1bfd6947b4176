"""Runs of both diffusion systems in small: prefetched latents of random numbers, and a configuration for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from common.config import Source
from common.distributed import rank, world_size
from configs.schema import check
from data.latents import write_statistics
from data.name_tensors import pack_names
from tests.networks.tiny_encoders import TINY as TINY_ENCODERS
from tests.trainer.conftest import merged
from trainer.launch import system_class
from trainer.trainer import Trainer

CHANNELS, SIDE, CLASSES, ITEMS = 4, 4, 3, 10
MEAN, STD = torch.tensor([1.0, -2.0, 0.5, 0.0]), torch.tensor([2.0, 0.5, 1.0, 3.0])
NETWORK = {
    "patch_size": 1,
    "hidden_size": 32,
    "depth": 2,
    "num_heads": 2,
    "input_size": SIDE,
    "in_channels": CHANNELS,
    "num_classes": CLASSES,
    "class_dropout_prob": 0.3,
}


def write_latents(folder: Path, system: str, **changes: torch.Tensor) -> Path:
    """What the prefetch for a system would have written: two files and statistics that fit."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)

    def latents(rows: int) -> torch.Tensor:
        z = torch.randn(rows, CHANNELS, SIDE, SIDE, generator=generator)
        return z * STD.view(-1, 1, 1) + MEAN.view(-1, 1, 1)

    for number, rows in enumerate((ITEMS - 4, 4)):
        labels = torch.arange(rows) % CLASSES
        if system == "lightningdit":
            tensors = {"latents": latents(rows), "latents_flip": latents(rows), "labels": labels}
        else:
            mean = latents(rows)
            images = torch.randint(0, 256, (rows, 3, 32, 32), generator=generator, dtype=torch.uint8)
            names = pack_names([f"{number}_{row}" for row in range(rows)])
            moments = torch.cat([mean, torch.full_like(mean, 0.1)], dim=1)
            tensors = {"moments": moments, "labels": labels, "names": names, "images": images}
        save_file({**tensors, **changes}, folder / f"latents_rank00_shard{number:03d}.safetensors")
    write_statistics(folder, MEAN, STD)
    return folder


def write_target(folder: Path) -> Path:
    """A random DINOv2 of width 32."""
    TINY_ENCODERS["dinov2"].save(folder)
    return folder


def tiny_values(system: str, latents: Path, run_dir: Path, target: Path) -> dict[str, Any]:
    """A run of 6 steps of 4 latents; ticks and checkpoints end after steps 1, 3, 5 and 6."""
    values: dict[str, Any] = {
        "system": system,
        "run": {"run_dir": str(run_dir), "random_seed": 3, "device": "cpu"},
        "data": {"path": str(latents), "workers": 0},
        "network": dict(NETWORK),
        "optimizer": {"lr": 1e-3, "max_grad_norm": 1.0},
        "training": {"batch_size": 4, "total_kimg": 0.024, "kimg_per_tick": 0.008, "ema_decay": 0.9},
        "checkpoint": {"network_snapshot_ticks": 1},
    }
    if system == "lightningdit":
        return values | {"transport": {"use_cosine_loss": True, "use_lognorm": True}}
    values["network"] |= {"encoder_depth": 1, "z_dims": [32], "projector_dim": 16}
    return values | {"target": {"vfm_names": [str(target)]}}


def trainer_of(values: dict[str, Any], **changes: Any) -> Trainer:
    """A trainer on this process, or on this rank of several."""
    config = check(Source("tiny.yaml", merged(values, changes)), require_runnable=True).config
    device = torch.device("cpu")
    run = system_class(config).prepare(config, device, pin_memory=False)
    assert (run.data.share.rank, run.data.share.world_size) == (rank(), world_size())
    return Trainer(config, run.system, run.data, device)
