"""A run that was stopped and resumed equals one that never was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from common.checkpoint_folder import list_checkpoints
from common.errors import CheckpointError
from tests.trainer.conftest import build_trainer, comparable, run_until, state_of

# In the tiny configuration, 24 images in batches of 4, ticks (and checkpoints) end after steps 1, 3, 5 and 6.


@pytest.fixture(scope="module")
def unbroken(config_of_run, tmp_path_factory):
    """State, log and folder of a run without interruption."""
    run_dir = tmp_path_factory.mktemp("unbroken") / "run"
    trainer = run_until(build_trainer(config_of_run(run_dir)))
    return state_of(trainer), comparable(run_dir), run_dir


@pytest.fixture
def complete(unbroken, tmp_path) -> Path:
    """A copy of its folder, in the place of the run that a test configures."""
    return shutil.copytree(unbroken[-1], tmp_path / "run")


def test_resuming_is_exact_in_bf16_with_accumulation_and_workers(make_config, tmp_path) -> None:
    states = []
    for name, stops in (("unbroken", []), ("stopped", [2, 5])):
        changes = {
            "run.run_dir": str(tmp_path / name),
            "training.precision": "bf16",
            "training.channels_last": True,
            "training.fused_optimizer": True,
            "training.accumulate_gradients": 2,
            "data.workers": 1,
        }
        config = make_config(changes=changes)
        for stop in stops:
            run_until(build_trainer(config), stop)
        states.append(state_of(run_until(build_trainer(config))))
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert comparable(tmp_path / "unbroken") == comparable(tmp_path / "stopped")


def test_the_run_differs_with_its_seed(make_config, unbroken) -> None:
    trainer = run_until(build_trainer(make_config(changes={"run.random_seed": 4})))
    assert not torch.equal(
        state_of(trainer)["raw/tokenizer/decoder.blocks.0.to_rgb.weight"],
        unbroken[0]["raw/tokenizer/decoder.blocks.0.to_rgb.weight"],
    )


def test_a_complete_run_is_left_alone(make_config, complete, caplog) -> None:
    before = {path: path.stat().st_mtime_ns for path in complete.rglob("*.safetensors")}
    assert before
    with caplog.at_level("INFO"):
        run_until(build_trainer(make_config()))
    assert "This run is complete: 24 images seen, 24 wanted." in caplog.text
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_longer_run_goes_on_from_a_complete_one(make_config, complete, caplog) -> None:
    with caplog.at_level("INFO"):
        longer = run_until(build_trainer(make_config(changes={"training.total_kimg": 0.032})))
    assert "24 images, step 6" in caplog.text
    assert longer.nimg == 32


def test_another_configuration_is_refused_with_its_keys(make_config) -> None:
    run_until(build_trainer(make_config()), 2)
    other = make_config(changes={"optimizer.generator.lr": 2e-3, "losses.kl.weight": 1e-5, "data.workers": 1})
    with pytest.raises(CheckpointError) as error:
        run_until(build_trainer(other))
    text = str(error.value)
    assert "optimizer.generator.lr: 0.001 in the checkpoint, 0.002 now" in text
    assert "losses.kl.weight: 1e-06 in the checkpoint, 1e-05 now" in text
    assert "data.workers" not in text


def test_damaged_checkpoint_is_passed_over_for_the_one_before_it(make_config, unbroken, caplog) -> None:
    config = make_config()
    run_until(build_trainer(config), 5)
    *_, before, newest = list_checkpoints(config.run.run_dir)
    weights = newest / "model_raw.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    resumed = build_trainer(config)
    run_until(resumed)
    assert f"{weights}: damaged" in caplog.text
    assert "Falling back to the checkpoint before it." in caplog.text
    assert before.exists()
    state = state_of(resumed)
    expected_state, expected_log, _ = unbroken
    assert all(torch.equal(state[name], expected) for name, expected in expected_state.items())
    assert comparable(Path(config.run.run_dir)) == expected_log


def test_a_damaged_checkpoint_never_outlives_the_good_one(make_config) -> None:
    config = make_config(changes={"checkpoint.keep_last": 1})
    run_until(build_trainer(config), 3)
    run_dir = Path(config.run.run_dir)
    (good,) = list_checkpoints(run_dir)
    damaged = good.with_name("checkpoint-000000000099")
    damaged.mkdir()
    (damaged / "manifest.json").write_text("{}")
    resumed = run_until(build_trainer(config), 4)
    assert resumed.step == 4
    assert [path.name for path in list_checkpoints(run_dir)] == ["checkpoint-000000000016"]
    assert len(list((run_dir / "checkpoints").glob("damaged-*"))) == 1


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_from_scratch(make_config) -> None:
    config = make_config()
    run_until(build_trainer(config), 1)
    for folder in list_checkpoints(config.run.run_dir):
        (folder / "model.safetensors").unlink()
    log = (Path(config.run.run_dir) / "log.jsonl").read_text()
    with pytest.raises(CheckpointError, match="all 1 checkpoints are damaged"):
        run_until(build_trainer(config))
    assert (Path(config.run.run_dir) / "log.jsonl").read_text() == log


def test_other_data_under_the_same_configuration_is_refused(make_config, tmp_path) -> None:
    from tests.tiny import write_data

    run_until(build_trainer(make_config()), 1)
    other = write_data(tmp_path / "other", samples=21)
    with pytest.raises(CheckpointError, match=r"data\.path holds other shards or samples"):
        run_until(build_trainer(make_config(changes={"data.path": str(other)})))


def test_rotation_keeps_the_newest_and_every_nth(make_config) -> None:
    changes = {
        "training.kimg_per_tick": 0.004,
        "checkpoint.keep_last": 2,
        "checkpoint.keep_every": 3,
    }
    config = make_config(changes=changes)
    run_until(build_trainer(config))
    ordinals = [
        json.loads((folder / "manifest.json").read_text())["ordinal"] for folder in list_checkpoints(config.run.run_dir)
    ]
    assert ordinals == [3, 4, 5]


def test_a_new_run_starts_from_old_weights(make_config, unbroken, tmp_path) -> None:
    expected, _, first = unbroken
    config = make_config(
        changes={
            "run.run_dir": str(tmp_path / "second"),
            "training.init_from": str(first),
            "training.init_kimg": 0.024,
            "training.total_kimg": 0.028,
        }
    )
    second = build_trainer(config)
    second._start()
    assert second.nimg == 24
    for kind in ("raw", "ema"):
        name = f"{kind}/tokenizer/decoder.blocks.0.to_rgb.weight"
        assert torch.equal(state_of(second)[name], expected[name])
