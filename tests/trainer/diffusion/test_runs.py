"""Runs of LightningDiT and REG: resumed, split over ranks, started from others, refused."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch

from common.errors import CheckpointError, ConfigError, DataError
from data.latents import read_normalisation, write_statistics
from tests.faults.ranks import run_ranks
from tests.trainer.conftest import comparable, run_until, state_of
from tests.trainer.diffusion.tiny_runs import CLASSES, tiny_values, trainer_of, write_latents
from trainer.metrics import read_log

pytestmark = pytest.mark.parametrize("system", ["lightningdit", "reg"])

LOSSES = {"lightningdit": {"total", "mse", "cosine"}, "reg": {"total", "denoise", "cls", "proj"}}


def loss_lines(run_dir: Path) -> list[dict[str, float]]:
    lines = read_log(run_dir / "log.jsonl")
    return [{name: value for name, value in line.items() if name.startswith(("loss/", "grad"))} for line in lines]


def assert_same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_resumed_run_equals_an_unbroken_one(system, precision, values_of, tmp_path) -> None:
    """Networks, EMA, optimiser and log to the bit, whatever the workers; every step is finite and moves the weights."""
    options = {"training.precision": precision, "training.accumulate_gradients": 2}
    if precision == "fp16" and system == "lightningdit":
        options["transport.use_cosine_loss"] = False
    unbroken = run_until(trainer_of(values_of(system, "unbroken"), **options))
    values = values_of(system, "stopped")
    for stop, workers in ((2, 1), (5, 0)):
        run_until(trainer_of(values, **options, **{"data.workers": workers}), stop)
    stopped = run_until(trainer_of(values, **options))
    assert (stopped.step, stopped.nimg) == (6, 24)
    assert_same(state_of(stopped), state_of(unbroken))
    assert comparable(tmp_path / "stopped") == comparable(tmp_path / "unbroken")
    log = loss_lines(tmp_path / "stopped")
    if precision == "fp16":  # the first steps find out by how much the loss can be scaled
        log = [line for line in log if line]
    named = {f"loss/{name}" for name in LOSSES[system]} - ({"loss/cosine"} if precision == "fp16" else set())
    assert all(named <= line.keys() for line in log)
    assert all(math.isfinite(value) for line in log for value in line.values())
    assert log and all(line["gradient_norm/backbone"] > 0 for line in log)


def test_the_ema_keeps_the_same_share_in_every_step_and_fixed_tables_to_the_bit(system, values_of) -> None:
    trainer = trainer_of(values_of(system))
    before = {name: p.detach().clone() for name, p in trainer.system.network.named_parameters()}
    batches = trainer.data.micro_batches(0)
    trainer.train_step(batches)
    batches.close()
    after = dict(trainer.system.network.named_parameters())
    for name, average in trainer.system.average.named_parameters():
        torch.testing.assert_close(average, 0.9 * before[name] + 0.1 * after[name], msg=name)
    assert torch.equal(trainer.system.average.pos_embed, before["pos_embed"])


def draws_of(trainer, steps: int) -> list:
    """What every sample of some steps is trained with, by position."""
    found = {}
    batches = trainer.data.micro_batches(0)
    for _ in range(steps * trainer.training.accumulate_gradients):
        batch = next(batches)
        rows = zip(batch.z, *batch.drawn.values(), strict=True)
        for position, row in zip(batch.positions, rows, strict=True):
            found[position] = [value.tolist() for value in row]
    batches.close()
    return sorted(found.items())


def train_rank(values: dict, rank: int) -> list:
    """One run; the draws of its first two steps."""
    trainer = trainer_of(values)
    drawn = draws_of(trainer, 2)
    trainer.run()
    return drawn


def test_ranks_and_accumulation_share_the_same_step(system, values_of, tmp_path) -> None:
    """The same samples with the same draws; losses and gradient norms of the first step within 1e-6."""
    first, drawn = [], []
    for name, ranks, accumulate in (("whole", 1, 1), ("accumulated", 1, 2), ("ranks", 2, 1)):
        values = values_of(system, name)
        values["training"] |= {"accumulate_gradients": accumulate, "total_kimg": 0.008, "kimg_per_tick": 0.004}
        work = partial(train_rank, values)
        drawn.append([work(0)] if ranks == 1 else run_ranks(ranks, work, tmp_path, timeout_s=60))
        first.append(loss_lines(tmp_path / name)[0])
    whole = json.loads(json.dumps(drawn[0][0]))
    assert len(whole) == 8
    assert json.loads(json.dumps(drawn[1][0])) == whole
    assert sorted([*drawn[2][0], *drawn[2][1]]) == whole
    for other in first[1:]:
        for name in first[0]:
            assert abs(other[name] - first[0][name]) <= 1e-6 * max(1, abs(first[0][name])), name


def test_a_run_goes_on_from_another_with_its_weights_average_and_optimiser(system, values_of, tmp_path) -> None:
    first = run_until(trainer_of(values_of(system, "first")))
    options = {
        "training.init_from": str(tmp_path / "first"),
        "training.init_kimg": 0.024,
        "training.total_kimg": 0.028,
        "optimizer.lr": 2e-3,
    }
    second = trainer_of(values_of(system, "second"), **options, **{"training.init_optimizer": True})
    second._start()
    assert second.nimg == 24 and second.step == 0
    assert_same(state_of(second), state_of(first))
    without = trainer_of(values_of(system, "third"), **options)
    without._start()
    assert not any(name.startswith("optimizer") for name in state_of(without))
    second.run()
    assert read_log(tmp_path / "second" / "log.jsonl")[-1]["learning_rate/backbone"] == 2e-3


def test_what_a_run_cannot_start_from_is_refused(system, values_of, tiny_tokenizer, tmp_path) -> None:
    torch.save({"model": {"a": torch.zeros(1)}}, tmp_path / "reference.pt")
    for path, message in (
        (tmp_path, "no complete checkpoint here"),
        (tiny_tokenizer, "found a checkpoint of vfm_vae, expected one of a diffusion model"),
        (tmp_path / "reference.pt", "the weights do not fit the configuration"),
    ):
        with pytest.raises(CheckpointError, match=message):
            trainer_of(values_of(system), **{"training.init_from": str(path)}).run()
    run_until(trainer_of(values_of(system, "small")))
    larger = {"network.hidden_size": 48, "training.init_from": str(tmp_path / "small")}
    with pytest.raises(CheckpointError, match=r"the weights do not fit the configuration: .* of another shape"):
        trainer_of(values_of(system), **larger).run()
    with pytest.raises(ConfigError, match=r"training.init_optimizer: true, but training.init_from names no run"):
        trainer_of(values_of(system), **{"training.init_optimizer": True})


def test_a_checkpoint_says_how_its_latents_were_normalised(system, values_of, latents, tmp_path) -> None:
    run_until(trainer_of(values_of(system)), 1)
    (folder,) = (tmp_path / "run" / "checkpoints").iterdir()
    model = json.loads((folder / "config.json").read_text())
    statistics = read_normalisation(latents[system], 4)
    assert (model["model_type"], model["network"]["hidden_size"]) == (system, 32)
    assert torch.equal(torch.tensor(model["latents"]["mean"]), statistics.mean.flatten())
    assert torch.equal(torch.tensor(model["latents"]["std"]), statistics.std.flatten())
    assert model["latents"]["multiplier"] == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network.in_channels": 5}, r"latents have the shape \[4, 4, 4\], but network.in_channels .* say \[5, 4, 4\]"),
        ({"network.input_size": 8}, r"latents have the shape \[4, 4, 4\], .* say \[4, 8, 8\]"),
        ({"network.num_classes": 2}, r"found the label 2 \(3 of 10 are no class\), but network.num_classes is 2"),
    ],
)
def test_latents_that_do_not_fit_the_network_are_refused(system, changes, message, values_of) -> None:
    with pytest.raises(DataError, match=message):
        trainer_of(values_of(system), **changes)


def test_bad_statistics_are_refused(system, target, tmp_path) -> None:
    folder = write_latents(tmp_path / "latents", system)
    values = tiny_values(system, folder, tmp_path / "run", target)
    write_statistics(folder, torch.zeros(4), torch.full((4,), 0.05))
    with pytest.raises(DataError, match=r"root mean square \d+.*, expected about 1: they are not normalised"):
        trainer_of(values)
    write_statistics(folder, torch.zeros(5), torch.ones(5))
    with pytest.raises(DataError, match=r"latents_stats\.pt: mean: found the shape \[1, 5, 1, 1\]"):
        trainer_of(values)
    (folder / "latents_stats.pt").unlink()
    with pytest.raises(DataError, match=r"latents_stats\.pt: missing; latents cannot be normalised"):
        trainer_of(values)


def test_negative_labels_are_refused(system, target, tmp_path) -> None:
    rows = {"labels": torch.tensor([-1, 0, 1, 2])}
    folder = write_latents(tmp_path / "latents", system)
    write_latents(tmp_path / "other", system)
    from safetensors.torch import load_file, save_file

    path = folder / "latents_rank00_shard001.safetensors"
    save_file(load_file(path) | rows, path)
    with pytest.raises(DataError, match=rf"found the label -1 .* expected labels from 0 to {CLASSES - 1}"):
        trainer_of(tiny_values(system, folder, tmp_path / "run", target))


def test_a_run_is_not_resumed_with_another_configuration_or_other_latents(system, values_of, target, tmp_path) -> None:
    values = values_of(system)
    run_until(trainer_of(values), 2)
    changes = {"optimizer.lr": 2e-3, "network.class_dropout_prob": 0.2, "sample.cfg_scale": 2.0}
    with pytest.raises(CheckpointError) as error:
        trainer_of(values, **changes).run()
    text = str(error.value)
    assert "optimizer.lr: 0.001 in the checkpoint, 0.002 now" in text
    assert "network.class_dropout_prob: 0.3 in the checkpoint, 0.2 now" in text
    assert "cfg_scale" not in text
    moved = write_latents(tmp_path / "moved", system)
    assert run_until(trainer_of(values, **{"data.path": str(moved)}), 3).step == 3
    write_statistics(moved, torch.tensor([1.0, -2.0, 0.5, 0.1]), torch.tensor([2.0, 0.5, 1.0, 3.0]))
    with pytest.raises(CheckpointError, match=r"data.path holds other shards or samples"):
        trainer_of(values, **{"data.path": str(moved)}).run()


def test_relations_between_sections_are_reported(system, values_of) -> None:
    changes = {
        "lightningdit": {
            "transport.loss_weight": "velocity",
            "network.num_heads": 5,
            "training.precision": "fp16",
        },
        "reg": {"sample.guidance_low": 0.9, "network.z_dims": [32, 32]},
    }
    messages = {
        "lightningdit": (
            'transport.loss_weight: found "velocity"',
            "network.hidden_size: 32 cannot be shared",
            "training.precision: found fp16, which cannot hold the first",
        ),
        "reg": ("sample.guidance_low: 0.9 is above", "network.z_dims: 2 widths [32, 32] for 1 target encoders"),
    }
    with pytest.raises(ConfigError) as error:
        trainer_of(values_of(system), **changes[system])
    assert all(message in str(error.value) for message in messages[system])
