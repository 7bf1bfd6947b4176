"""The SLURM example requeues a job that was stopped after a checkpoint, and no other."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "slurm.sh"


@pytest.fixture
def cluster(tmp_path):
    """Starts the script with stand-ins for SLURM's commands; `srun` runs one task, whose Python is a shell script."""
    programs = {
        "srun": 'while [[ $1 == -* ]]; do shift; done; SLURM_PROCID=3 SLURM_LOCALID=1 exec "$@"',
        "scontrol": f'echo "$*" >> "{tmp_path}/scontrol"; echo node7; echo node8',
    }
    for name, body in programs.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / name).chmod(0o755)

    def start(training: str) -> subprocess.Popen:
        (tmp_path / "python").write_text(f"#!/usr/bin/env bash\n{training}\n")
        (tmp_path / "python").chmod(0o755)
        environment = os.environ | {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "PYTHON": str(tmp_path / "python"),
            "SLURM_JOB_ID": "41",
            "SLURM_JOB_NODELIST": "node[7-8]",
            "SLURM_NTASKS": "4",
            "SLURM_NTASKS_PER_NODE": "2",
        }
        command = ["bash", str(SCRIPT), "--config", "a b.yaml"]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    return start, tmp_path / "scontrol"


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (2, False), (143, True)])
def test_only_a_stopped_run_is_requeued(cluster, code, requeued):
    start, calls = cluster
    process = start(f'echo "$RANK $LOCAL_RANK $WORLD_SIZE $LOCAL_WORLD_SIZE $MASTER_ADDR|$*"; exit {code}')
    output, _ = process.communicate(timeout=30)
    assert process.returncode == code
    assert output.splitlines()[0] == "3 1 4 2 node7|train.py --config a b.yaml"
    assert ("requeue 41" in calls.read_text().splitlines()) is requeued


def test_a_signal_to_the_script_leaves_the_training_to_finish(cluster, tmp_path):
    start, calls = cluster
    process = start(f'touch "{tmp_path}/running"; while [[ ! -e "{tmp_path}/go" ]]; do sleep 0.05; done; exit 143')
    while not (tmp_path / "running").exists():
        assert process.poll() is None
        time.sleep(0.02)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        process.send_signal(number)
        time.sleep(0.1)
    assert process.poll() is None
    (tmp_path / "go").touch()
    process.communicate(timeout=30)
    assert process.returncode == 143 and "requeue 41" in calls.read_text()
