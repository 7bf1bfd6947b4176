"""Damaged data: the run ends with the damage counted, or stops and names it; nothing hangs, nothing foreign is run."""

from __future__ import annotations

import json
import os
import pickle
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from common.config import Source
from common.errors import DataError
from common.random import keyed_seed
from configs.schema import check
from data.pipeline import TrainingData
from data.shards import scan_shard
from data.sources import build_source
from tests.data.sample_files import encoded, sample, write_shards, write_tar
from tests.data.test_pipeline import children, keys_of, open_data, take
from tests.faults.ranks import run_ranks
from tests.tiny import tiny_values
from tests.trainer.conftest import build_trainer, merged
from trainer.trainer import Trainer


def jpeg(key: str) -> bytes:
    """A smooth picture that depends on the key."""
    rng = np.random.default_rng(keyed_seed(0, key))
    return encoded(np.kron(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8), np.ones((18, 18, 1), np.uint8)), "jpeg")


USABLE = 56
AT_START = {
    "duplicate key": {"1.tar": 2},
    "empty shard": {"3.tar": 1},
    "missing shard": {"4.tar": 1},
    "truncated shard": {"2.tar": 1},
}
ON_THE_WAY = {"not an image": {"0.tar": 1}, "truncated image": {"0.tar": 1, "1.tar": 1}}


def write_damaged(folder: Path) -> Path:
    """Shards 0 to 5 with the damage above (5 % of the images are broken); returns the pattern that names them."""
    broken = {"0_03": b"no picture", "0_11": jpeg("0_11")[:-200], "1_07": jpeg("1_07")[:300]}
    for shard, size in ((0, 15), (1, 15), (2, 15), (5, 16)):
        keys = [f"{shard}_{number:02d}" for number in range(size)]
        members = [member for key in keys for member in sample(key, 0, broken.get(key, jpeg(key)))]
        if shard == 1:
            members += [*sample("1_02", 0, jpeg("x")), *sample("0_00", 0, jpeg("x"))]
        write_tar(folder / f"{shard}.tar", [(name.replace(".png", ".jpg"), content) for name, content in members])
    os.truncate(folder / "2.tar", scan_shard(folder, "2.tar").samples["2_10"]["jpg"].offset + 1)
    (folder / "3.tar").touch()
    return folder / "{0..5}.tar"


@pytest.fixture
def damaged(tmp_path, tiny_encoder):
    """A run's configuration on damaged data, with changes by dotted key."""
    pattern = write_damaged(tmp_path / "data")

    def make(changes):
        values = merged(tiny_values(tiny_encoder, pattern, tmp_path / "run"), changes)
        return check(Source("tiny.yaml", values), require_runnable=True).config

    return make


def test_a_run_on_damaged_data_ends_and_reports_exactly_the_damage(damaged, tmp_path, caplog):
    changes = {"data.max_skip_fraction": 0.2, "data.workers": 1, "data.one_epoch": True}
    changes |= {"training.total_kimg": 1.0, "training.kimg_per_tick": 1.0}
    trainer = build_trainer(damaged(changes))
    with caplog.at_level("INFO"):
        assert trainer.run()
    for kind, shards in AT_START.items():
        ((shard, count),) = shards.items()
        assert f"Left out: {count} x {kind}: {shard} ({count})" in caplog.text
    assert trainer.nimg == USABLE
    assert trainer.data.skips.state_dict()["counts"] == ON_THE_WAY
    last = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    assert {key: value for key, value in last.items() if key.startswith("data/")} == {
        "data/samples_seen": USABLE,
        "data/samples_skipped": 3,
        "data/skipped/not an image": 1,
        "data/skipped/truncated image": 2,
    }


def test_a_run_with_too_many_missing_shards_stops_and_names_them(damaged):
    with pytest.raises(DataError, match=r"1 of 6 shards are missing, .*max_skip_fraction = 0\.01\. 4\.tar: missing"):
        build_trainer(damaged({}))


def test_a_run_whose_samples_are_too_bad_stops_and_names_the_shard(tmp_path, tiny_encoder, monkeypatch):
    monkeypatch.setattr("data.skips.MIN_SAMPLES", 12)
    write_shards(tmp_path / "data", [15, 15], {f"1_{number:03d}": b"no picture" for number in range(6)})
    values = merged(tiny_values(tiny_encoder, tmp_path / "data", tmp_path / "run"), {"data.max_skip_fraction": 0.1})
    trainer = build_trainer(check(Source("tiny.yaml", values)).config)
    with pytest.raises(
        DataError, match=r"\d of \d\d samples were bad .* Worst shards: 01\.tar \(\d\)\. Kinds: not an im"
    ):
        trainer.run()


# --- many ranks ------------------------------------------------------------------------------------------------------


def one_rank(data: TrainingData) -> SimpleNamespace:
    """What a trainer needs to fetch its batches, without networks."""
    return SimpleNamespace(
        training=SimpleNamespace(accumulate_gradients=data.share.accumulate),
        data=data,
        stop=SimpleNamespace(requested=False),
        device=torch.device("cpu"),
        _data_seconds=0.0,
    )


def steps_until_error(trainer: SimpleNamespace, batches, steps: int) -> tuple[int, str]:
    """(steps that were fetched, the error that ended it)."""
    for step in range(steps):
        try:
            Trainer._fetch(trainer, batches)
        except DataError as error:
            return step, str(error)
    return steps, ""


@pytest.mark.parametrize(("allowed", "stops"), [(0.06, False), (0.04, True)])
def test_bad_samples_are_judged_over_all_ranks_which_stop_together(tmp_path, allowed, stops):
    """Every bad sample is at a place of rank 1, whose own share is twice that of the run."""
    keys = write_shards(tmp_path / "data", [60, 60])
    order = open_data(tmp_path / "data").order
    bad = [keys[order.sample_at(position)] for position in range(2, 120, 20)]
    write_shards(tmp_path / "data", [60, 60], dict.fromkeys(bad, b"no picture"))

    def work(rank: int) -> tuple[int, str]:
        data = open_data(tmp_path / "data", rank=rank, world_size=2, max_skip_fraction=allowed)
        return steps_until_error(one_rank(data), data.micro_batches(), 30)

    first, second = run_ranks(2, work, tmp_path)
    assert first == second
    if stops:
        worst = max("01", key=lambda shard: sum(key.startswith(shard) for key in bad[:5]))
        assert f"Worst shards: 0{worst}.tar" in first[1] and "of 100 samples were bad" in first[1]
    else:
        assert first == [30, ""]


def test_a_killed_worker_of_one_rank_ends_all_ranks_with_its_error(tmp_path):
    write_shards(tmp_path / "data", [40])

    def work(rank: int) -> tuple[int, str, float]:
        before = children()
        data = open_data(tmp_path / "data", rank=rank, world_size=2, workers=1, prefetch_batches=1)
        batches = data.micro_batches()
        trainer = one_rank(data)
        Trainer._fetch(trainer, batches)
        if rank == 1:
            os.kill(min(children() - before), signal.SIGKILL)
        start = time.monotonic()
        fetched, error = steps_until_error(trainer, batches, 1000)
        return fetched, error, time.monotonic() - start

    for fetched, error, seconds in run_ranks(2, work, tmp_path):
        assert "A data loader process died" in error and fetched < 10
        assert seconds < 30


# --- how a step is split ---------------------------------------------------------------------------------------------


def test_a_step_holds_the_same_samples_on_4_2_and_1_ranks(tmp_path):
    """Bad samples included: their substitutes are those of their places."""
    write_shards(tmp_path, [7, 6, 8], {"0_003": b"no picture", "2_001": b"no picture"})
    steps = {}
    for world_size, accumulate in ((4, 1), (2, 2), (1, 4)):
        of_ranks = []
        for rank in range(world_size):
            data = open_data(tmp_path, global_batch=8, rank=rank, world_size=world_size, accumulate=accumulate)
            of_ranks.append(take(data, 6 * accumulate))
        steps[world_size] = [
            [key for batches in of_ranks for key in keys_of(batches[step * accumulate : (step + 1) * accumulate])]
            for step in range(6)
        ]
    assert steps[4] == steps[2] == steps[1] and all(len(keys) == 8 for keys in steps[1])


# --- files that want to be run ---------------------------------------------------------------------------------------


class Trap:
    """Makes a file as soon as it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("extension", ["pyd", "pickle", "pkl", "pth", "npy", "cls", "txt", "json", "jpg"])
def test_a_pickle_in_a_shard_is_never_run(tmp_path, extension):
    trap = pickle.dumps(Trap(tmp_path / "ran"))
    write_tar(tmp_path / "a.tar", [*sample("a", 0), *sample("b", 0), (f"c.{extension}", trap), *sample("c", 0)])
    for label_type in ("cls2id", "text", "none"):
        try:
            data = open_data(tmp_path, label_type=label_type, max_skip_fraction=1.0, global_batch=3)
            take(data, 1)
        except DataError as error:
            assert "no sample is left" in str(error) or "could be used" in str(error)
    assert not (tmp_path / "ran").exists()


def test_a_pickle_as_key_list_is_refused_and_never_run(tmp_path):
    write_shards(tmp_path, [2])
    (tmp_path / "keys.pkl").write_bytes(pickle.dumps(["0_000", Trap(tmp_path / "ran")]))
    config = open_data(tmp_path).config.model_copy(update={"filter_keys_path": str(tmp_path / "keys.pkl")})
    with pytest.raises(DataError, match=r"keys\.pkl: refused: opcode .* nothing in it was run"):
        build_source(config, 0)
    assert not (tmp_path / "ran").exists()
