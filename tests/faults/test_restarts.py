"""`torchrun --max-restarts`: a run whose ranks are killed ends equal to an undisturbed one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.checkpoint_folder import list_checkpoints
from configs.schema import load_config
from tests.faults.conftest import final_tensors, largest_difference
from tests.faults.ranks import run_ranks
from tests.tiny import tiny_values, write_config
from tests.trainer.conftest import comparable, merged
from trainer.launch import launch


def start(config: Path) -> subprocess.Popen:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max-restarts=3"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    return subprocess.Popen(
        [*launcher, "train.py", "--config", str(config)], env=environment, stderr=subprocess.PIPE, text=True
    )


def process_of_rank(launcher: int, rank: int) -> int:
    """Process id of a rank, from what the launcher gave to its children."""
    for entry in Path("/proc").iterdir():
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1]) if entry.name.isdecimal() else 0
            if parent == launcher and f"RANK={rank}" in (entry / "environ").read_text().split("\0"):
                return int(entry.name)
        except OSError:
            continue
    raise AssertionError(f"rank {rank} is not there")


@pytest.mark.parametrize(
    ("steps", "kills"),
    [(8, [(1, 2)]), pytest.param(30, [(1, 6), (0, 14), (1, 22)], marks=pytest.mark.slow)],
    ids=["one rank", "three ranks in turn"],
)
def test_a_run_whose_ranks_are_killed_ends_equal_to_an_undisturbed_one(tiny_encoder, tiny_data, tmp_path, steps, kills):
    configs = {}
    for name in ("whole", "killed"):
        changes = {"training.total_kimg": 4 * steps / 1000, "training.kimg_per_tick": 0.004, "data.workers": 1}
        values = merged(tiny_values(tiny_encoder, tiny_data, tmp_path / name), changes)
        configs[name] = write_config(values, tmp_path / f"{name}.yaml")

    assert run_ranks(2, lambda rank: launch(load_config(configs["whole"]).config), tmp_path, 120) == [0, 0]
    killed = start(configs["killed"])
    deadline = time.monotonic() + 60 * (1 + len(kills))
    for rank, step in kills:
        while max((int(f.name.split("-")[1]) // 4 for f in list_checkpoints(tmp_path / "killed")), default=0) < step:
            assert killed.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(process_of_rank(killed.pid, rank), signal.SIGKILL)
    _, errors = killed.communicate(timeout=60 * (1 + len(kills)))
    assert killed.returncode == 0, errors[-3000:]
    assert errors.count("Resumed from") == len(kills)

    whole, after_kills = (final_tensors(tmp_path / name) for name in ("whole", "killed"))
    assert largest_difference(whole, after_kills) == 0
    assert comparable(tmp_path / "whole") == comparable(tmp_path / "killed")
