"""A bad number on one of two ranks."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from common.checkpoint_folder import list_checkpoints
from tests.faults.conftest import final_tensors, largest_difference
from tests.faults.warm import Run
from trainer.metrics import read_log

BAD_STEP = 2
SPIKE_STEP = 20  # no gradient norm is a spike before


def _change_reports(change) -> None:
    """Let rank 1 change what its backward pass reports, in one step."""
    from trainer.systems.vfm_vae import VFMVAESystem

    backward = VFMVAESystem.backward

    def changed(self, phase, batch, at):
        report = backward(self, phase, batch, at)
        return change(phase, report) if at.step == BAD_STEP and os.environ["RANK"] == "1" else report

    VFMVAESystem.backward = changed


def nan_loss() -> None:
    _change_reports(lambda phase, report: {**report, "loss/kl": report["loss/kl"] * float("nan")})


def infinite_loss() -> None:
    _change_reports(lambda phase, report: {**report, "loss/vf": report["loss/vf"] * float("inf")})


def jumping_loss() -> None:
    _change_reports(lambda phase, report: {**report, "loss/l1_pixel": report["loss/l1_pixel"] * 1e4})


def _scale_local_gradient(factor: float, step: int) -> None:
    """Let rank 1 scale its own gradient before the mean over ranks, in one step."""
    from trainer.systems.vfm_vae import VFMVAESystem

    backward = VFMVAESystem.backward

    def changed(self, phase, batch, at):
        is_bad = at.step == step and os.environ["RANK"] == "1"
        weight = self.tokenizer.decoder.blocks[-1].to_rgb.weight
        handle = weight.register_hook(lambda gradient: gradient * factor) if is_bad else None
        report = backward(self, phase, batch, at)
        if handle is not None:
            handle.remove()
        return report

    VFMVAESystem.backward = changed


def nan_gradient() -> None:
    _scale_local_gradient(float("nan"), BAD_STEP)


def spiking_gradient() -> None:
    _scale_local_gradient(1e6, SPIKE_STEP)


def for_steps(steps: int) -> dict[str, float]:
    """A run of so many steps, each with a line in the log, and a checkpoint at its end."""
    return {
        "training.total_kimg": 4 * steps / 1000,
        "training.kimg_per_tick": 0.004,
        "checkpoint.network_snapshot_ticks": 1000,
    }


@pytest.fixture(scope="module")
def undisturbed(config_in, tmp_path_factory) -> Callable[[int], Path]:
    """The folder of an undisturbed run after so many steps; each length runs once."""
    folder = tmp_path_factory.mktemp("undisturbed")

    @cache
    def run(steps: int) -> Path:
        assert Run(config_in(folder, f"{steps}_steps", for_steps(steps)), ranks=2).wait() == [0, 0]
        return folder / f"{steps}_steps"

    return run


@pytest.mark.parametrize(
    ("fault", "step", "named"),
    [
        (nan_loss, BAD_STEP, r"rank 1: loss/kl = nan \(not finite\)"),
        (infinite_loss, BAD_STEP, r"rank 1: loss/vf = inf \(not finite\)"),
        (jumping_loss, BAD_STEP, r"rank 1: loss/l1_pixel = [\d.]+ \(more than 10 times"),
        (nan_gradient, BAD_STEP, r"rank 1: gradient_norm/generator/of_rank = nan"),
        (spiking_gradient, SPIKE_STEP, r"gradient_norm/generator = [\d.e+]+ \(more than 100 times the median"),
    ],
)
def test_nobody_steps_when_one_rank_has_a_bad_number(
    config_file, undisturbed, tmp_path, fault, step: int, named: str
) -> None:
    """The step comes after those of an undisturbed run, from whose checkpoint this one goes on."""
    shutil.copytree(undisturbed(step), tmp_path / "spoilt")
    run = Run(config_file("spoilt", for_steps(step + 1)), ranks=2, fault=fault)
    assert run.wait() == [0, 0]
    assert re.search(rf"step {step} is left out; .*{named}", run.text()), run.text()
    last = read_log(tmp_path / "spoilt" / "log.jsonl")[-1]
    assert last["guard/skipped_generator"] == 1.0
    assert last["progress/step"] == step + 1
    assert len(list_checkpoints(tmp_path / "spoilt")) == 2
    assert largest_difference(final_tensors(undisturbed(step)), final_tensors(tmp_path / "spoilt")) == 0
