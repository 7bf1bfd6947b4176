"""`torchrun --max-restarts`: a run whose ranks are killed ends equal to an undisturbed one."""

from __future__ import annotations

import os
import signal
import time
from multiprocessing import Process
from pathlib import Path

import pytest

from common.checkpoint_folder import list_checkpoints
from tests.faults.child import torchrun
from tests.faults.conftest import final_tensors, largest_difference
from tests.faults.warm import Run
from tests.forkserver import CONTEXT
from tests.trainer.conftest import comparable


def start(config: Path, output: Path) -> Process:
    arguments = ["--standalone", "--nproc_per_node=2", "--max-restarts=3", "train.py", "--config", str(config)]
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    launcher = CONTEXT.Process(target=torchrun, args=(arguments, environment, output))
    launcher.start()
    return launcher


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
def test_a_run_whose_ranks_are_killed_ends_equal_to_an_undisturbed_one(config_file, tmp_path, steps, kills):
    changes = {"training.total_kimg": 4 * steps / 1000, "training.kimg_per_tick": 0.004, "data.workers": 1}
    output = tmp_path / "torchrun.txt"
    killed = start(config_file("killed", changes), output)
    deadline = time.monotonic() + 60 * (1 + len(kills))
    for rank, step in kills:
        while max((int(f.name.split("-")[1]) // 4 for f in list_checkpoints(tmp_path / "killed")), default=0) < step:
            assert killed.is_alive() and time.monotonic() < deadline, output.read_text()
            time.sleep(0.01)
        os.kill(process_of_rank(killed.pid, rank), signal.SIGKILL)
    assert Run(config_file("whole", changes), ranks=2).wait() == [0, 0]
    killed.join(60 * (1 + len(kills)))
    assert killed.exitcode == 0, output.read_text()[-3000:]
    assert output.read_text().count("Resumed from") == len(kills)

    whole, after_kills = (final_tensors(tmp_path / name) for name in ("whole", "killed"))
    assert largest_difference(whole, after_kills) == 0
    assert comparable(tmp_path / "whole") == comparable(tmp_path / "killed")
