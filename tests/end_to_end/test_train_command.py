"""`train.py` as a user runs it: looking, wrong input, stopping, going on."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from common.lock import locked
from tests.faults.warm import Run
from tests.tiny import SMALL, tiny_values, write_config
from tests.trainer.conftest import merged

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}


def train(*arguments: str | Path, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "train.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=120, **options)


@pytest.fixture
def tiny_config_file(tiny_encoder, tiny_data, tmp_path):
    def write(**changes) -> Path:
        values = merged(tiny_values(tiny_encoder, tiny_data, tmp_path / "run"), changes.get("changes", {}))
        return write_config(values, tmp_path / "tiny.yaml")

    return write


def test_dry_run_counts_the_published_model_without_its_encoder() -> None:
    from configs.schema import load_config
    from trainer.dry_run import describe

    stage = "configs/vfm_vae_f16d32_siglip2_stage_0_strong_alignment.yaml"
    text = describe(load_config(stage, ["decoder.legacy=true", "training.batch_size=8"]).config, ranks=8)
    lines = dict(line.split(None, 1) if "  " not in line else line.split("  ", 1) for line in text.splitlines())
    assert "139,770,680 (139.77 M)" in lines["trainable parameters"]
    assert lines["frozen encoder"].strip() == "unknown"
    assert "16 x 16 x 32" in lines["latent"]
    assert "micro-batches of 1 on 8 ranks" in lines["images"]


def test_dry_run_counts_an_encoder_whose_files_are_here(make_tiny_config) -> None:
    from trainer.dry_run import describe

    text = describe(make_tiny_config, ranks=1)
    assert "unknown" not in text
    assert "time per kimg" in text


@pytest.fixture
def make_tiny_config(tiny_encoder, tiny_data, tmp_path):
    from common.config import Source
    from configs.schema import check

    return check(Source("tiny.yaml", tiny_values(tiny_encoder, tiny_data, tmp_path / "run"))).config


def test_all_mistakes_are_reported_at_once_within_two_cpu_seconds(tiny_config_file) -> None:
    changes = {
        "training.bach_size": 4,
        "training.ema_kimg": "long",
        "encoder.patch_in_dimensions": [32, 32],
        "data.resolution": 60,
        "data.path": "no/such/folder",
    }
    config = tiny_config_file(changes=changes)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = train("--config", config)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert result.returncode == 2
    assert "5 problems" in result.stderr
    assert "training.bach_size: unknown key. Closest: batch_size." in result.stderr
    assert "training.ema_kimg: found 'long'" in result.stderr
    assert "encoder.patch_from_layers: 3 layers [0, 2, -1]" in result.stderr
    assert "data.resolution: 60 is not divisible by" in result.stderr
    assert "data.path: found 'no/such/folder', which does not exist" in result.stderr
    assert "Traceback" not in result.stderr
    assert (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime) < 2


def test_printed_configuration_is_complete_and_loads_again(tiny_config_file, tmp_path) -> None:
    first = train("--config", tiny_config_file(), "--print-config", "--set", "training.batch_size=2")
    assert first.returncode == 0
    values = yaml.safe_load(first.stdout)
    assert values["training"]["batch_size"] == 2
    assert values["checkpoint"]["keep_last"] == 3
    again = write_config(values, tmp_path / "again.yaml")
    assert train("--config", again, "--print-config").stdout == first.stdout


def test_killed_and_stopped_runs_go_on_from_their_newest_checkpoint(tiny_config_file, tmp_path) -> None:
    """SIGKILL, then SIGTERM (exit code 143 after a checkpoint), then to the end."""
    changes = {**SMALL, "training.total_kimg": 4.0, "training.kimg_per_tick": 0.004, "checkpoint.keep_last": 2}
    config = tiny_config_file(changes=changes)
    checkpoints = tmp_path / "run" / "checkpoints"

    def start_and_wait(count: int) -> Run:
        run = Run(config)
        deadline = time.monotonic() + 60
        while written() < count:
            assert run.processes[0].is_alive() and time.monotonic() < deadline, run.text()
            time.sleep(0.02)
        return run

    def written() -> int:
        names = sorted(path.name for path in checkpoints.glob("checkpoint-*"))
        return int(names[-1].split("-")[1]) // 4 if names else 0

    run = start_and_wait(2)
    run.kill()
    at_kill = written()

    run = start_and_wait(at_kill + 2)
    run.signal(signal.SIGTERM)
    assert run.wait() == [143]
    assert "Resumed from" in run.text()
    assert "Stopped by a signal" in run.text()
    at_stop = written()
    assert at_stop >= at_kill + 2

    final = Run(config, overrides=[f"training.total_kimg={(at_stop + 2) * 4 / 1000}"])
    assert final.wait() == [0], final.text()
    assert f"{at_stop * 4:,} images, step {at_stop}" in final.text()
    assert written() == at_stop + 2


def test_a_second_run_in_the_same_folder_is_refused(tiny_config_file, tmp_path) -> None:
    config = tiny_config_file()
    with locked(tmp_path / "run"):
        run = Run(config)
        assert run.wait() == [2]
    assert f"error: {tmp_path / 'run'}: another process writes here (process {os.getpid()} on " in run.text()
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
