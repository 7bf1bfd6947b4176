"""Processes that are killed or told to stop."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable

import pytest
import torch

from tests.faults.conftest import final_tensors, largest_difference
from tests.faults.warm import Run
from tests.trainer.conftest import comparable
from tests.trainer.test_adversarial import STYLEGAN_T

KILLS = [pytest.param(3, id="3 kills"), pytest.param(20, id="20 kills", marks=pytest.mark.slow)]
ADVERSARIAL = {
    **STYLEGAN_T,
    "training.share_generator_forward": True,
    "training.batch_size": 2,
    "training.kimg_per_tick": 0.002,
    "checkpoint.network_snapshot_ticks": 1,
}
EIGHT_STEPS = {"training.total_kimg": 0.032, "checkpoint.network_snapshot_ticks": 1000}


def slow_checkpoints() -> None:
    """Make the writing of checkpoints take about as long as the training between them."""
    from trainer import checkpointing

    save_tensors = checkpointing.save_tensors

    def slowly(tensors, path):
        save_tensors(tensors, path)
        time.sleep(0.03)

    checkpointing.save_tensors = slowly


def slow_steps() -> None:
    """Leave time for a signal before the last step."""
    from trainer.trainer import Trainer

    train_step = Trainer.train_step

    def slowly(self, batches):
        time.sleep(0.2)
        return train_step(self, batches)

    Trainer.train_step = slowly


def wait_until(happened: Callable[[], object], timeout: float = 60) -> None:
    """Wait for something that a run does."""
    deadline = time.monotonic() + timeout
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("kills", KILLS)
def test_a_killed_run_goes_on_from_a_complete_checkpoint(config_file, tmp_path, kills: int) -> None:
    rng = random.Random(kills)
    changes = {**ADVERSARIAL, "training.total_kimg": 2 * (3 * kills - 1) / 1000}
    config, checkpoints = config_file("killed", changes), tmp_path / "killed" / "checkpoints"
    inside_a_write = 0
    for i in range(kills):
        run = Run(config, fault=slow_checkpoints)
        if i % 3 != 2:
            run.wait_for("Resumed from|No checkpoint in")
        if i % 3 == 0:
            wait_until(lambda: any(checkpoints.glob(".*")))
        time.sleep(rng.uniform(0, 0.1 if i % 3 == 0 else 1.2))
        run.signal(signal.SIGKILL)
        assert run.wait() == [-signal.SIGKILL]
        inside_a_write += any(checkpoints.glob(".*"))
    assert inside_a_write > 0
    run = Run(config)
    assert run.wait() == [0]
    assert "Resumed from" in run.text() or "No checkpoint in" in run.text()
    at_the_end = {**changes, "checkpoint.network_snapshot_ticks": 1000}
    assert Run(config_file("undisturbed", at_the_end)).wait() == [0]
    difference = largest_difference(final_tensors(tmp_path / "undisturbed"), final_tensors(tmp_path / "killed"))
    assert difference == 0
    assert comparable(tmp_path / "killed") == comparable(tmp_path / "undisturbed")


@pytest.fixture(scope="module")
def undisturbed_on_two_ranks(config_in, tmp_path_factory) -> dict[str, torch.Tensor]:
    """Everything in the last checkpoint of a run that no signal reached."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert Run(config_in(folder, changes=EIGHT_STEPS), ranks=2).wait() == [0, 0]
    return final_tensors(folder / "run")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_one_rank_stops_both_at_the_same_step_and_resumes_exactly(
    config_file, undisturbed_on_two_ranks, tmp_path, number
) -> None:
    stopped = config_file("stopped", EIGHT_STEPS)
    run = Run(stopped, ranks=2, fault=slow_steps)
    run.wait_for("starting from scratch", rank=0)
    wait_until(lambda: (tmp_path / "stopped" / "log.jsonl").read_text())
    began = time.monotonic()
    run.signal(number, rank=1)
    assert run.wait() == [143, 143]
    assert time.monotonic() - began < 30
    (manifest,) = [
        json.loads((folder / "manifest.json").read_text())
        for folder in sorted((tmp_path / "stopped" / "checkpoints").iterdir())[-1:]
    ]
    assert 0 < manifest["nimg"] < 32
    assert Run(stopped, ranks=2).wait() == [0, 0]
    assert largest_difference(undisturbed_on_two_ranks, final_tensors(tmp_path / "stopped")) == 0


def test_a_killed_rank_ends_the_other_with_an_error_within_a_minute(config_file, tmp_path) -> None:
    run = Run(config_file("run", {"training.total_kimg": 4.0}), ranks=2)
    run.wait_for("starting from scratch", rank=0)
    wait_until(lambda: (tmp_path / "run" / "log.jsonl").read_text())
    began = time.monotonic()
    run.signal(signal.SIGKILL, rank=1)
    codes = run.wait(timeout=60)
    assert time.monotonic() - began < 60
    assert codes[1] == -signal.SIGKILL
    assert codes[0] not in (0, 143, -signal.SIGKILL)
