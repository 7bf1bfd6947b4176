"""Validation in the loop: it disturbs nothing, its numbers are logged, and the best checkpoint stays."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from common.checkpoint_folder import find_checkpoint, list_checkpoints
from evaluation.validation import Validation, ValidationResult
from networks.checkpoint import load_tokenizer
from networks.checkpoint.folder import read_manifest
from tests.trainer.conftest import build_trainer, comparable, run_until, state_of
from trainer import checkpointing
from trainer.metrics import read_log
from trainer.trainer import Trainer

# Ticks, and validations, end after 4, 12, 20 and 24 images.


@pytest.fixture(scope="module")
def validating_in(config_of_run, tiny_data):
    """The tiny configuration with a validation at every tick, for a run folder."""

    def make(run_dir: Path, **changes):
        values = {
            "source": "webdataset",
            "path": str(tiny_data),
            "num_images": 6,
            "every_ticks": 1,
            "batch_size_per_gpu": 4,
            "perceptual": "none",
            "frechet": "none",
        }
        return config_of_run(run_dir, {"validation": values, "logging.image_snapshot_count": 3} | changes)

    return make


@pytest.fixture
def validating(validating_in, tmp_path):
    """The same for a run of this name in the folder of the test."""
    return lambda name="run", **changes: validating_in(tmp_path / name, **changes)


@pytest.fixture(scope="module")
def unbroken(validating_in, tmp_path_factory) -> tuple[dict[str, torch.Tensor], Path]:
    """State and folder of such a run that was never stopped."""
    run_dir = tmp_path_factory.mktemp("unbroken")
    return state_of(run_until(build_trainer(validating_in(run_dir)))), run_dir


@pytest.fixture
def run_with(monkeypatch):
    """Runs without learning anything, whose validations find these values, by number of images seen."""

    def run(config, values: dict[int, float], until: int | None = None) -> Trainer:
        trainer = build_trainer(config)

        def pretend(self, reconstruct) -> ValidationResult:
            return ValidationResult({"psnr": values[trainer.nimg], "images": 6}, torch.empty(0), torch.empty(0))

        monkeypatch.setattr(Validation, "run", pretend)
        monkeypatch.setattr(trainer, "train_phase", lambda phase, micro_batches, found: True)
        return run_until(trainer, until)

    return run


def numbers(run_dir: str) -> list[int]:
    return [int(folder.name.split("-")[1]) for folder in list_checkpoints(run_dir)]


def test_validation_leaves_weights_and_log_as_they_were(validating, unbroken, tmp_path) -> None:
    without = state_of(run_until(build_trainer(validating(validation=None))))
    states, logs = (unbroken[0], without), [comparable(run_dir) for run_dir in (unbroken[1], tmp_path / "run")]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert all(line["validation/images"] == 6 and line["validation/psnr"] > 0 for line in logs[0])
    assert [{k: v for k, v in line.items() if not k.startswith("validation/")} for line in logs[0]] == logs[1]


def test_numbers_are_logged_and_a_grid_is_written_at_each_validation(validating, tmp_path) -> None:
    run_until(build_trainer(validating(**{"validation.every_ticks": 2, "logging.image_snapshot_ticks": None})))
    lines = read_log(tmp_path / "run" / "log.jsonl")
    assert [line["progress/nimg"] for line in lines if "validation/psnr" in line] == [4, 20, 24]  # the last always
    assert {"validation/psnr", "validation/ssim", "validation/ssim_01", "validation/skipped"} <= lines[-1].keys()
    assert lines[-1]["timing/validation_seconds"] > 0
    grids = sorted((tmp_path / "run" / "samples").iterdir())
    assert [grid.name for grid in grids] == [f"validation-{nimg:012d}.png" for nimg in (4, 20, 24)]
    with Image.open(grids[0]) as image:
        assert image.size == (3 * 34 + 2, 2 * 36)  # one row of inputs, one of reconstructions


def test_a_log_line_says_how_fast_and_how_large_the_run_is(validating, tmp_path) -> None:
    run_until(build_trainer(validating()), 3)
    line = read_log(tmp_path / "run" / "log.jsonl")[-1]
    assert line["timing/seconds_per_kimg"] == pytest.approx(1000 / line["timing/images_per_second"])
    assert line["timing/seconds_per_tick"] == pytest.approx(8 / line["timing/images_per_second"])
    assert line["timing/maintenance_seconds"] > 0
    assert 0 <= line["timing/data_wait_share"] <= 1
    assert 0 < line["resources/cpu_memory_gb"] <= line["resources/peak_memory_gb"]
    assert line["gradient_norm/generator"] > 0


def test_a_stopped_and_resumed_run_validates_as_an_unbroken_one(validating, unbroken, tmp_path) -> None:
    run_until(build_trainer(validating()), 2)
    resumed = run_until(build_trainer(validating()))
    assert comparable(tmp_path / "run") == comparable(unbroken[1])
    assert os.readlink(tmp_path / "run" / "best") == os.readlink(unbroken[1] / "best")
    best = max(read_log(tmp_path / "run" / "log.jsonl"), key=lambda line: line["validation/psnr"])
    assert (resumed.best.nimg, resumed.best.value) == (best["progress/nimg"], best["validation/psnr"])


def test_the_best_checkpoint_survives_rotation_and_loads(validating, run_with, tmp_path) -> None:
    config = validating(**{"checkpoint.keep_last": 1})
    run_with(config, {4: 10.0, 12: 30.0, 20: 20.0, 24: 29.9})
    assert numbers(config.run.run_dir) == [12, 24]
    assert os.readlink(tmp_path / "run" / "best") == "checkpoints/checkpoint-000000000012"
    assert read_manifest(find_checkpoint(tmp_path / "run" / "best", print))["nimg"] == 12
    assert read_manifest(find_checkpoint(tmp_path / "run", print))["nimg"] == 24
    load_tokenizer(tmp_path / "run" / "best")


def test_a_better_validation_has_its_checkpoint_written_between_the_regular_ones(validating, run_with) -> None:
    config = validating(**{"checkpoint.network_snapshot_ticks": 50, "validation.best_metric": "psnr"})
    run_with(config, {4: 10.0, 12: 30.0, 20: 20.0, 24: 25.0})
    assert numbers(config.run.run_dir) == [4, 12, 24]


def test_no_best_checkpoint_is_kept_where_none_is_asked_for(validating, run_with, tmp_path) -> None:
    config = validating(**{"checkpoint.keep_last": 1, "validation.best_metric": None})
    run_with(config, {4: 10.0, 12: 30.0, 20: 20.0, 24: 25.0})
    assert numbers(config.run.run_dir) == [24]
    assert not (tmp_path / "run" / "best").is_symlink()


@pytest.mark.parametrize("link", ["checkpoints/checkpoint-000000000004", None])
def test_a_kill_between_checkpoint_and_link_leaves_the_right_best(validating, run_with, tmp_path, link) -> None:
    config = validating(**{"checkpoint.keep_last": 1})
    run_with(config, {4: 10.0, 12: 30.0}, until=3)
    (tmp_path / "run" / "best").unlink()
    if link is not None:
        (tmp_path / "run" / "best").symlink_to(link)
    (tmp_path / "run" / ".best.partial").symlink_to("anything")
    run_with(config, {20: 20.0, 24: 25.0})
    assert numbers(config.run.run_dir) == [12, 24]
    assert os.readlink(tmp_path / "run" / "best") == "checkpoints/checkpoint-000000000012"


def test_a_best_checkpoint_that_is_gone_is_told_and_forgotten(validating, run_with, tmp_path, caplog) -> None:
    config = validating()
    run_with(config, {4: 50.0, 12: 30.0}, until=3)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "checkpoint-000000000004")
    trainer = run_with(config, {20: 20.0, 24: 25.0})
    assert "checkpoint-000000000004 is gone, which was the best by validation." in caplog.text
    assert (trainer.best.nimg, trainer.best.value) == (24, 25.0)


def test_another_validation_set_starts_the_comparison_anew(validating, run_with) -> None:
    run_with(validating(), {4: 10.0, 12: 30.0}, until=3)
    trainer = run_with(validating(**{"validation.num_images": 5}), {20: 20.0, 24: 15.0})
    assert (trainer.best.nimg, trainer.best.value) == (20, 20.0)


def test_a_resumed_run_without_validation_keeps_the_best(validating, run_with) -> None:
    config = validating()
    run_with(config, {4: 50.0, 12: 30.0}, until=3)
    run_with(validating(validation=None, **{"checkpoint.keep_last": 1}), {})
    assert numbers(config.run.run_dir) == [4, 24]


def test_what_could_not_be_saved_is_not_the_best(validating, run_with, monkeypatch, tmp_path) -> None:
    save = checkpointing.save

    def fail_once(run_dir, system, optimizers, state, *rest):
        if state["nimg"] == 12:
            raise OSError("No space left on device")
        return save(run_dir, system, optimizers, state, *rest)

    monkeypatch.setattr(checkpointing, "save", fail_once)
    run_with(validating(), {4: 10.0, 12: 30.0, 20: 20.0, 24: 25.0})
    assert os.readlink(tmp_path / "run" / "best") == "checkpoints/checkpoint-000000000024"
    state = json.loads((tmp_path / "run" / "best" / "training_state.json").read_text())
    assert state["best"]["value"] == 25.0


def test_a_folder_in_the_place_of_the_link_stops_nothing(validating, run_with, tmp_path, caplog) -> None:
    (tmp_path / "run" / "best").mkdir(parents=True)
    config = validating(**{"checkpoint.keep_last": 1})
    run_with(config, {4: 10.0, 12: 30.0, 20: 20.0, 24: 25.0})
    assert numbers(config.run.run_dir) == [12, 24]
    assert "run/best could not be set" in caplog.text


def test_a_conditional_decoder_is_given_the_labels_of_the_set(validating, monkeypatch) -> None:
    classes = {
        "data.label_type": "cls2id",
        "decoder.conditional": True,
        "decoder.label_type": "cls2id",
        "decoder.label_dim": 3,
    }
    trainer = build_trainer(validating(**classes))
    given: list[torch.Tensor] = []
    decode = type(trainer.system.average).decode

    def seen(model, z, c=None):
        given.append(c)
        return decode(model, z, c)

    monkeypatch.setattr(type(trainer.system.average), "decode", seen)
    assert trainer.system.validate().values["images"] == 6
    # Every third of 20 pictures, whose class is their number modulo 3; the last batch of 4 is filled up.
    expected = [number % 3 for number in (0, 3, 6, 10, 13, 16, 16, 16)]
    assert torch.cat(given).argmax(1).tolist() == expected
