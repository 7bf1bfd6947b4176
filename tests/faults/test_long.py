"""Thousands of steps: nothing may grow."""

from __future__ import annotations

import json
import os

import pytest

from tests.faults.warm import Run
from tests.trainer.test_adversarial import STYLEGAN_T

STEPS, WARM_UP = 3000, 500


def watched() -> None:
    """Write down memory and open files after every log line."""
    from trainer.trainer import Trainer

    end_tick = Trainer._end_tick

    def watch(self, done, bar):
        end_tick(self, done, bar)
        with open("/proc/self/statm", encoding="ascii") as file:
            resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        with open(self.run_dir / "watched.jsonl", "a", encoding="ascii") as file:
            print(json.dumps([self.step, resident, len(os.listdir("/proc/self/fd"))]), file=file)

    Trainer._end_tick = watch


@pytest.mark.slow
def test_3000_steps_with_rotation_grow_neither_in_memory_nor_in_open_files(config_file, tmp_path) -> None:
    changes = {
        **STYLEGAN_T,
        "training.batch_size": 2,
        "training.total_kimg": 2 * STEPS / 1000,
        "training.kimg_per_tick": 0.1,
        "checkpoint.network_snapshot_ticks": 2,
        "checkpoint.keep_last": 2,
    }
    run = Run(config_file("long", changes), fault=watched)
    assert run.wait(timeout=3600) == [0]
    rows = [json.loads(line) for line in (tmp_path / "long" / "watched.jsonl").read_text().splitlines()]
    after = [row for row in rows if row[0] >= WARM_UP]
    memory, files = [row[1] for row in after], {row[2] for row in after}
    assert after[-1][0] == STEPS
    assert max(memory) <= 1.02 * memory[0], (memory[0], max(memory))
    assert len(files) == 1, files
    assert len(list((tmp_path / "long" / "checkpoints").glob("checkpoint-*"))) == 2
