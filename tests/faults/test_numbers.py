"""A bad number on one of two ranks."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from common.checkpoint_folder import list_checkpoints
from tests.faults.conftest import final_tensors, largest_difference
from tests.faults.warm import Run
from trainer.metrics import read_log

STEPS = 20  # as many as the guard waits for before a gradient norm can be a spike


def _change_reports(step: int, change) -> None:
    """Let rank 1 change what its backward pass reports, in one step."""
    from trainer.systems.vfm_vae import VFMVAESystem

    backward = VFMVAESystem.backward

    def changed(self, phase, batch, at):
        report = backward(self, phase, batch, at)
        return change(report) if at.step == step and os.environ["RANK"] == "1" else report

    VFMVAESystem.backward = changed


def nan_loss(step: int) -> None:
    _change_reports(step, lambda report: {**report, "loss/kl": report["loss/kl"] * float("nan")})


def infinite_loss(step: int) -> None:
    _change_reports(step, lambda report: {**report, "loss/vf": report["loss/vf"] * float("inf")})


def jumping_loss(step: int) -> None:
    _change_reports(step, lambda report: {**report, "loss/l1_pixel": report["loss/l1_pixel"] * 1e4})


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


def nan_gradient(step: int) -> None:
    _scale_local_gradient(float("nan"), step)


def spiking_gradient(step: int) -> None:
    _scale_local_gradient(1e6, step)


# One in each of the steps after those of the undisturbed run, with what the log says of it.
FAULTS = {
    nan_loss: r"rank 1: loss/kl = nan \(not finite\)",
    infinite_loss: r"rank 1: loss/vf = inf \(not finite\)",
    jumping_loss: r"rank 1: loss/l1_pixel = [\d.]+ \(more than 10 times",
    nan_gradient: r"rank 1: gradient_norm/generator/of_rank = nan",
    spiking_gradient: r"gradient_norm/generator = [\d.e+]+ \(more than 100 times the median",
}


def all_faults() -> None:
    for step, fault in enumerate(FAULTS, STEPS):
        fault(step)


def for_steps(steps: int) -> dict[str, float]:
    """A run of so many steps, each with a line in the log, and a checkpoint at its end."""
    return {
        "training.total_kimg": 4 * steps / 1000,
        "training.kimg_per_tick": 0.004,
        "checkpoint.network_snapshot_ticks": 1000,
    }


@pytest.fixture(scope="module")
def undisturbed(config_in, tmp_path_factory) -> Path:
    """The folder of an undisturbed run."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert Run(config_in(folder, "run", for_steps(STEPS)), ranks=2).wait() == [0, 0]
    return folder / "run"


@pytest.fixture(scope="module")
def spoilt(config_in, undisturbed, tmp_path_factory) -> tuple[Path, str]:
    """The folder of a run that goes on from there with bad numbers only, and what its rank 0 wrote."""
    folder = tmp_path_factory.mktemp("spoilt")
    shutil.copytree(undisturbed, folder / "run")
    run = Run(config_in(folder, "run", for_steps(STEPS + len(FAULTS))), ranks=2, fault=all_faults)
    assert run.wait() == [0, 0]
    return folder / "run", run.text()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_number_on_one_rank_is_named_and_its_step_left_out(spoilt, fault) -> None:
    run_dir, text = spoilt
    step = STEPS + list(FAULTS).index(fault)
    assert re.search(rf"step {step} is left out; .*{FAULTS[fault]}", text), text
    (line,) = [line for line in read_log(run_dir / "log.jsonl") if line["progress/step"] == step + 1]
    assert line["guard/skipped_generator"] == 1.0


def test_nobody_steps_when_one_rank_has_a_bad_number(undisturbed, spoilt) -> None:
    run_dir, _ = spoilt
    assert [len(list_checkpoints(folder)) for folder in (undisturbed, run_dir)] == [1, 2]
    assert largest_difference(final_tensors(undisturbed), final_tensors(run_dir)) == 0
