"""Checkpoints that are damaged, and checkpoints that cannot be written."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from common.checkpoint_folder import list_checkpoints, newest_complete, verify
from common.errors import CheckpointError
from tests.trainer.conftest import build_trainer, run_until
from trainer.metrics import read_log

FLIPS = [pytest.param(20, id="20 flips"), pytest.param(200, id="200 flips", marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def trained(config_of_run, tmp_path_factory) -> Path:
    """The folder of a run with three checkpoints."""
    changes = {"checkpoint.keep_last": 9, "training.total_kimg": 0.016, "training.kimg_per_tick": 0.004}
    trainer = run_until(build_trainer(config_of_run(tmp_path_factory.mktemp("trained"), changes)))
    assert len(list_checkpoints(trainer.run_dir)) == 3
    return trainer.run_dir


@pytest.fixture
def run_dir(trained, tmp_path) -> Path:
    """A copy of that folder."""
    return shutil.copytree(trained, tmp_path / "copy")


@pytest.mark.parametrize("flips", FLIPS)
def test_every_flipped_bit_is_found_before_a_tensor_is_used(run_dir, flips: int) -> None:
    rng = random.Random(flips)
    *_, before, newest = list_checkpoints(run_dir)
    files = sorted(path for path in newest.iterdir() if path.is_file())
    assert {"manifest.json", "manifest.sha256", "model.safetensors", "training_state.json"} <= {p.name for p in files}
    found = 0
    for i in range(flips):
        path = files[i % len(files)]
        whole = path.read_bytes()
        content = bytearray(whole)
        place = rng.randrange(len(content))
        content[place] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        warnings: list[str] = []
        assert newest_complete(run_dir, warnings.append) == before, f"{path.name}, byte {place}"
        assert newest.name in warnings[0] and "Falling back to the checkpoint before it." in warnings[0]
        found += 1
        path.write_bytes(whole)
    assert found == flips
    assert newest_complete(run_dir, warnings.append) == newest


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "model.safetensors: found"),
        (lambda path: path.unlink(), "model.safetensors: missing"),
    ],
)
def test_a_truncated_or_missing_file_falls_back_and_says_so(run_dir, damage, message: str, caplog) -> None:
    from trainer.checkpointing import newest

    *_, before, damaged = list_checkpoints(run_dir)
    damage(damaged / "model.safetensors")
    assert newest(run_dir) == before
    assert message in caplog.text and "Falling back to the checkpoint before it." in caplog.text
    assert list_checkpoints(run_dir)[-1] == before  # the damaged one is set aside, so the run can write it again


def test_a_run_whose_checkpoint_folder_is_replaced_by_a_file_goes_on_and_counts_it(make_config, caplog) -> None:
    """Two saves fail before it is put back."""
    config = make_config(changes={"training.total_kimg": 0.04, "training.kimg_per_tick": 0.008})
    trainer = build_trainer(config)
    folder, aside, train_step = trainer.run_dir / "checkpoints", trainer.run_dir / "aside", trainer.train_step

    def disturbed(batches):
        if trainer.step == 4:
            folder.rename(aside)
            folder.write_text("not a folder")
        if trainer.step == 7:
            folder.unlink()
            aside.rename(folder)
        return train_step(batches)

    trainer.train_step = disturbed
    run_until(trainer)
    assert trainer.nimg == 40
    assert "could not be written" in caplog.text
    assert read_log(trainer.run_dir / "log.jsonl")[-1]["checkpoint/failures"] == 2
    for checkpoint in list_checkpoints(trainer.run_dir):
        verify(checkpoint)
    assert list_checkpoints(trainer.run_dir)[0].name == "checkpoint-000000000012"  # from before the disturbance


def test_a_run_that_can_never_write_stops_after_three_failures(make_config, monkeypatch) -> None:
    from trainer import checkpointing

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpointing, "save", fail)
    trainer = build_trainer(make_config(changes={"training.total_kimg": 4.0, "training.kimg_per_tick": 0.004}))
    with pytest.raises(CheckpointError, match="No space left on device"):
        run_until(trainer)
    assert trainer.save_failures == 3
