"""Training data: each sample once, the same batches however they are made, and nothing bad goes unseen."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import select
import signal
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import DataError
from common.random import python_generator
from data.augment import training_transform
from data.config import DataConfig
from data.pipeline import Batch, TrainingData
from data.skips import Skip, SkipCounter
from tests.data.sample_files import encoded, pixels_of, sample, write_shards, write_tar


def open_data(
    path: Path | str, *, global_batch=4, rank=0, world_size=1, accumulate=1, seed=0, **options
) -> TrainingData:
    config = DataConfig(**{"path": str(path), "resolution": 8, "workers": 0, "shuffle_window_shards": 2} | options)
    micro_batch = global_batch // world_size // accumulate
    return TrainingData(config, seed, global_batch, micro_batch, rank, world_size, accumulate)


def take(data: TrainingData, count: int, first_step: int = 0) -> list[Batch]:
    batches = data.micro_batches(first_step)
    found = list(islice(batches, count))
    batches.close()
    return found


def keys_of(batches: list[Batch]) -> list[str]:
    return [key for batch in batches for key in batch.keys]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("shards", [[5, 3, 4, 4], [16]], ids=["4 shards", "1 shard"])
@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_every_sample_is_seen_once_per_epoch(tmp_path, shards, world_size, workers):
    keys = write_shards(tmp_path, shards)
    ranks = [open_data(tmp_path, rank=r, world_size=world_size, workers=workers) for r in range(world_size)]
    steps = ranks[0].steps_per_epoch
    assert steps == 4
    seen = [take(data, 2 * steps) for data in ranks]
    for epoch in range(2):
        of_epoch = [key for batches in seen for key in keys_of(batches[epoch * steps : (epoch + 1) * steps])]
        assert sorted(of_epoch) == keys


def test_batches_run_on_across_epochs(tmp_path):
    keys = write_shards(tmp_path, [5, 5])
    data = open_data(tmp_path)
    assert data.steps_per_epoch == 3
    found = keys_of(take(data, 10))
    for epoch in range(4):
        assert sorted(found[epoch * 10 : (epoch + 1) * 10]) == keys


@pytest.mark.parametrize("first_step", [1, 4, 11])
@pytest.mark.parametrize("workers", [0, 2])
def test_any_step_can_be_the_first(tmp_path, first_step, workers):
    write_shards(tmp_path, [7, 6])
    unbroken = take(open_data(tmp_path, accumulate=2), 2 * (first_step + 2))
    resumed = take(open_data(tmp_path, accumulate=2, workers=workers), 4, first_step)
    for found, expected in zip(resumed, unbroken[2 * first_step :], strict=True):
        assert (found.keys, found.positions) == (expected.keys, expected.positions)
        assert torch.equal(found.images, expected.images)


def test_a_step_holds_the_same_images_however_it_is_split(tmp_path):
    write_shards(tmp_path, [9, 8])
    expected = torch.cat([batch.images for batch in take(open_data(tmp_path), 3)])
    for world_size, accumulate in ((2, 1), (1, 2), (2, 2), (1, 4)):
        options = {"world_size": world_size, "accumulate": accumulate}
        ranks = [take(open_data(tmp_path, rank=r, **options), 3 * accumulate) for r in range(world_size)]
        steps = [
            batch.images
            for step in range(3)
            for batches in ranks
            for batch in batches[step * accumulate : (step + 1) * accumulate]
        ]
        assert torch.equal(torch.cat(steps), expected)


def test_batch_holds_transformed_images_labels_and_texts(tmp_path):
    write_shards(tmp_path, [3, 3])
    (tmp_path / "texts.json").write_text('{"0": "tench", "1": "goldfish"}')
    data = open_data(tmp_path, label_type="cls2text", cls_to_text_path=str(tmp_path / "texts.json"), seed=5)
    (batch,) = take(data, 1, first_step=1)
    assert batch.images.shape == (4, 3, 8, 8) and batch.images.dtype == torch.uint8
    assert batch.positions == range(4, 8) and batch.skips == [] and batch.conversions == {}
    transform = training_transform(8, data_augmentation=True, color_augmentation=False)
    for row, key in enumerate(batch.keys):
        expected = transform(pixels_of(key), python_generator(5, "augment", 4 + row))
        assert np.array_equal(batch.images[row].permute(1, 2, 0).numpy(), expected)
    assert batch.labels.tolist() == [int(key[0]) for key in batch.keys]
    assert batch.texts == [("tench", "goldfish")[int(key[0])] for key in batch.keys]


def test_batches_can_be_made_by_processes_that_share_no_memory(tmp_path):
    write_shards(tmp_path, [5, 4])
    data = open_data(tmp_path, label_type="cls2text")
    (expected,) = take(data, 1, first_step=2)
    found = pickle.loads(pickle.dumps(data.dataset))[8]
    assert found.keys == expected.keys and found.texts == expected.texts and torch.equal(found.images, expected.images)


def test_labels_are_as_asked_for(tmp_path):
    write_shards(tmp_path, [1, 1, 1, 1])
    (batch,) = take(open_data(tmp_path), 1)
    assert batch.labels is None and batch.texts is None
    (batch,) = take(open_data(tmp_path, label_type="cls2id"), 1)
    assert sorted(batch.labels.tolist()) == [0, 1, 2, 3] and batch.texts is None
    (batch,) = take(open_data(tmp_path, label_type="cls2text"), 1)
    assert batch.texts == [str(label) for label in batch.labels.tolist()]


def test_captions_are_texts_of_the_batch_and_a_sample_without_one_is_left_out(tmp_path):
    image = encoded(pixels_of("x"))
    members = [("a.png", image), ("a.txt", " a größer cat\n".encode()), ("b.png", image), ("c.png", image)]
    write_tar(tmp_path / "0.tar", [*members, ("c.txt", b" "), ("d.png", image), ("d.txt", b"\xff")])
    data = open_data(tmp_path, label_type="text", global_batch=3)
    (batch,) = take(data, 1)
    assert batch.texts == ["a größer cat"] * 3 and batch.labels is None
    assert [str(problem) for problem in data.source.report.problems] == ["0.tar: b: no caption"]
    assert {(skip.key, skip.kind) for skip in batch.skips} == {("c", "no caption"), ("d", "bad label")}


def test_mirrored_samples_are_mirrored(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(pixels_of("a", 8, 8)))
    data = open_data(tmp_path, source="folder", xflip=True, data_augmentation=False, global_batch=2)
    (batch,) = take(data, 1)
    images = sorted(image.permute(1, 2, 0).tolist() for image in batch.images)
    assert images == sorted([pixels_of("a", 8, 8).tolist(), pixels_of("a", 8, 8)[:, ::-1].tolist()])


# --- bad samples -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_samples_are_replaced_and_counted_by_kind_and_shard(tmp_path, workers):
    bad = {"0_001": b"hello", "1_002": encoded(pixels_of("x"), "jpeg")[:-80], "1_003": b"hello"}
    keys = write_shards(tmp_path, [6, 6], bad)
    data = open_data(tmp_path, workers=workers)
    batches = take(data, 3)
    skips = [(skip.kind, skip.shard, skip.key) for batch in batches for skip in batch.skips]
    assert {skip for skip in skips} == {
        ("not an image", "00.tar", "0_001"),
        ("truncated image", "01.tar", "1_002"),
        ("not an image", "01.tar", "1_003"),
    }
    found = keys_of(batches)
    assert len(found) == 12 and set(keys) - set(bad) <= set(found) and not set(bad) & set(found)
    state = data.skips.state_dict()
    assert state["seen"] == 12 and sum(n for by in state["counts"].values() for n in by.values()) == len(skips)
    assert keys_of(take(open_data(tmp_path), 3)) == found


def test_substitute_is_chosen_from_the_position(tmp_path):
    write_shards(tmp_path, [6, 6], {"0_001": b"hello", "1_002": b""})
    whole = keys_of(take(open_data(tmp_path), 6))
    split = [take(open_data(tmp_path, rank=r, world_size=2, workers=1), 6) for r in range(2)]
    assert [key for pair in zip(*split, strict=True) for key in keys_of(list(pair))] == whole


def test_conversions_are_counted(tmp_path):
    members = [
        *sample("a", image=encoded(pixels_of("a")[:, :, 0])),
        *sample("b", image=encoded(np.zeros((1, 1), np.uint16))),
        *sample("c"),
    ]
    write_tar(tmp_path / "0.tar", members)
    data = open_data(tmp_path, global_batch=3)
    (batch,) = take(data, 1)
    assert batch.conversions == {"grey": 1, "16-bit": 1, "one pixel wide": 1} and batch.skips == []
    assert data.skips.state_dict()["conversions"] == {"16-bit": 1, "grey": 1, "one pixel wide": 1}


def test_too_many_bad_samples_stop_the_run_and_name_the_shard(tmp_path):
    write_shards(tmp_path, [60, 60], {f"1_{number:03d}": b"hello" for number in range(12)})
    (tmp_path / "02.tar").touch()
    data = open_data(tmp_path, max_skip_fraction=0.05)
    message = (
        r"\d+ of \d+ samples were bad \(\d+\.\d%\), expected at most data\.max_skip_fraction = 0\.05\. "
        r"Worst shards: 01\.tar \(\d+\)\. Kinds: not an image \(\d+\)\. Left out before the start: empty shard \(1\)"
    )
    take(data, 40)
    with pytest.raises(DataError, match=message):
        data.skips.check()
    data.skips.max_fraction = 0.2
    data.skips.check()


def test_class_without_a_text_is_a_bad_sample(tmp_path):
    write_shards(tmp_path, [3, 3])
    (tmp_path / "texts.json").write_text('{"0": "tench"}')
    data = open_data(tmp_path, label_type="cls2id", cls_to_text_path=str(tmp_path / "texts.json"), global_batch=6)
    (batch,) = take(data, 1)
    assert batch.labels.tolist() == [0] * 6 and {skip.kind for skip in batch.skips} == {"bad label"}


@pytest.mark.parametrize("workers", [0, 1])
def test_data_without_a_single_good_image_is_an_error(tmp_path, workers):
    write_shards(tmp_path, [4], {f"0_{number:03d}": b"hello" for number in range(4)})
    with pytest.raises(DataError, match=r"Position \d: none of 16 samples in a row .*00\.tar: 0_00\d: not an image"):
        take(open_data(tmp_path, workers=workers), 1)


def test_counter_goes_on_where_it_was():
    counter = SkipCounter(0.1, [Skip("empty shard", "x.tar")])
    counter.add(50, [Skip("not an image", "a.tar", "k"), Skip("bad label", "b.tar", "l")], {"grey": 3})
    resumed = SkipCounter(0.1)
    resumed.load_state_dict(counter.state_dict())
    resumed.add(10, [Skip("not an image", "b.tar", "m")], {"grey": 1, "CMYK": 1})
    assert resumed.state_dict() == {
        "seen": 60,
        "counts": {"bad label": {"b.tar": 1}, "not an image": {"a.tar": 1, "b.tar": 1}},
        "conversions": {"CMYK": 1, "grey": 4},
    }
    assert resumed.gather().state_dict() == resumed.state_dict()
    assert resumed.by_shard() == {"b.tar": 2, "a.tar": 1} and resumed.by_kind() == {"bad label": 1, "not an image": 2}


# --- processes -------------------------------------------------------------------------------------------------------


def children() -> set[int]:
    """Processes that this one started and that live."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == os.getpid() and fields[0] != "Z":
                found.add(int(entry.name))
    return found


def test_a_dead_worker_is_an_error_and_not_a_hang(tmp_path):
    write_shards(tmp_path, [8])
    before = children()
    batches = open_data(tmp_path, workers=2, prefetch_batches=1).micro_batches()
    next(batches)
    workers = children() - before
    assert len(workers) == 2
    start = time.monotonic()
    os.kill(min(workers), signal.SIGKILL)
    with pytest.raises(DataError, match=r"A data loader process died .* lower data\.workers"):
        for _ in range(50):
            next(batches)
    assert time.monotonic() - start < 30
    assert children() == before


def test_closing_the_batches_ends_the_workers(tmp_path):
    write_shards(tmp_path, [8])
    before = children()
    batches = open_data(tmp_path, workers=2).micro_batches()
    next(batches)
    assert len(children() - before) == 2
    batches.close()
    assert children() == before


def test_workers_go_on_when_the_whole_job_is_told_to_stop(tmp_path):
    write_shards(tmp_path, [8])
    before = children()
    batches = open_data(tmp_path, workers=1, prefetch_batches=1).micro_batches()
    next(batches)
    (worker,) = children() - before
    os.kill(worker, signal.SIGUSR1)
    os.kill(worker, signal.SIGTERM)
    assert len(list(islice(batches, 10))) == 10
    batches.close()


def test_the_connections_of_a_killed_training_process_are_not_kept_open_by_its_workers(tmp_path):
    write_shards(tmp_path, [8])
    reader, connection = os.pipe()

    def hold() -> None:
        batches = open_data(tmp_path, workers=2).micro_batches()
        next(batches)
        os.write(connection, b"started")
        time.sleep(60)

    process = multiprocessing.get_context("fork").Process(target=hold)
    process.start()
    os.close(connection)
    assert os.read(reader, 100) == b"started"
    process.kill()
    process.join()
    assert select.select([reader], [], [], 2)[0] and os.read(reader, 100) == b""
    os.close(reader)


# --- the log ---------------------------------------------------------------------------------------------------------


def test_description_names_what_was_left_out(tmp_path):
    write_shards(tmp_path, [3, 4])
    write_tar(tmp_path / "02.tar", sample("0_001"))
    (tmp_path / "03.tar").touch()
    (tmp_path / "keys.txt").write_text("0_000\n1_000\n1_001\nother\n")
    text = open_data(tmp_path, filter_keys_path=str(tmp_path / "keys.txt"), global_batch=2).describe()
    assert text.splitlines() == [
        f"Data: 3 samples in 4 shards of {tmp_path} (webdataset); 2 steps of 2 per epoch",
        f"Key filter {tmp_path}/keys.txt: 4 of 7 samples left out; 1 of its keys are not in the data",
        "Left out: 1 x duplicate key: 02.tar (1)",
        "Left out: 1 x empty shard: 03.tar (1)",
    ]
