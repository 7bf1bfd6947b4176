"""Tiny runs in this process."""

from __future__ import annotations

import copy
import runpy
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from common.config import Source
from configs.schema import check
from configs.tokenizer import TokenizerExperiment
from configs.vfm_vae import VFMVAEExperiment
from data.pipeline import TrainingData
from networks.discriminators import patchgan
from tests.tiny import SMALL, tiny_values
from trainer.launch import system_class
from trainer.metrics import read_log
from trainer.trainer import Trainer

ROOT = Path(__file__).parents[2]


def merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy of the values with dotted keys replaced."""
    values = copy.deepcopy(values)
    for key, value in changes.items():
        *sections, leaf = key.split(".")
        target = values
        for section in sections:
            target = target.setdefault(section, {})
        target[leaf] = copy.deepcopy(value)  # further changes may go into it
    return values


@pytest.fixture(scope="session")
def config_of_run(tiny_encoder, tiny_data) -> Callable[..., VFMVAEExperiment]:
    """The tiny configuration at its smallest, for a run folder, with changes by dotted key; `sizes={}`: not smaller."""

    def make(run_dir: Path, changes: dict[str, Any] | None = None, sizes: dict[str, Any] = SMALL) -> VFMVAEExperiment:
        values = merged(tiny_values(tiny_encoder, tiny_data, run_dir), {**sizes, **(changes or {})})
        return check(Source("tiny.yaml", values), require_runnable=True).config

    return make


@pytest.fixture
def make_config(config_of_run, tmp_path) -> Callable[..., VFMVAEExperiment]:
    """The same for a run in the folder of the test."""
    return partial(config_of_run, tmp_path / "run")


def build_trainer(config: TokenizerExperiment) -> Trainer:
    """A trainer on this process alone."""
    device = torch.device("cpu")
    accumulate = config.training.accumulate_gradients
    data = TrainingData(
        config.data,
        config.run.random_seed,
        config.training.batch_size,
        config.training.batch_size // accumulate,
        accumulate=accumulate,
    )
    return Trainer(config, system_class(config)(config, device), data, device)


@pytest.fixture(scope="module")
def narrow_patchgan() -> Iterator[None]:
    """PatchGANs of an eighth of their width: at its own, one is thirty times all other networks of a tiny run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patchgan, "CHANNELS", tuple(width // 8 for width in patchgan.CHANNELS))
        yield


def run_until(trainer: Trainer, step: int | None = None) -> Trainer:
    """Run to the end, or until a signal arrives during the given step."""
    if step is not None:
        train_step = trainer.train_step

        def interrupted(batches):
            stop = train_step(batches)
            return stop or trainer.step == step

        trainer.train_step = interrupted
    trainer.run()
    return trainer


def state_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    """All weights, averages and optimiser states by name."""
    from trainer.optimizer import optimizer_tensors

    state = {}
    for kind, networks in (("raw", trainer.system.networks), ("ema", trainer.system.averages)):
        for network, module in networks.items():
            state |= {f"{kind}/{network}/{name}": value for name, value in module.state_dict().items()}
    for phase in trainer.system.phases:
        tensors = optimizer_tensors(trainer.optimizers[phase.name], phase.parameters)
        state |= {f"optimizer/{phase.name}/{name}": value for name, value in tensors.items()}
    return {name: value.clone() for name, value in state.items()}


def comparable(run_dir: Path) -> list[dict[str, Any]]:
    """Log lines without time, rate and memory."""
    lines = read_log(run_dir / "log.jsonl")
    return [{k: v for k, v in line.items() if not k.startswith(("timing/", "resources/"))} for line in lines]


@pytest.fixture
def command(monkeypatch):
    """Run a script in this process; returns its exit code."""

    def run(script: str, *arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as end:
            return end.code or 0
        return 0

    return run
