"""Latents as training data: every epoch takes all of them, and draws follow the position alone."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from common.errors import DataError
from data.config import LightningDiTDataConfig, REGDataConfig
from data.latent_batches import LatentBatch, LatentStream, LightningDiTLatents, REGLatents
from data.latents import write_statistics
from data.stream import Share
from tests.trainer.diffusion.tiny_runs import ITEMS, MEAN, STD, write_latents

READERS = {"lightningdit": (LightningDiTLatents, LightningDiTDataConfig), "reg": (REGLatents, REGDataConfig)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("latents")
    return {system: write_latents(root / system, system) for system in READERS}


def stream_of(system: str, folder: Path, share: Share, seed: int = 3, workers: int = 0) -> LatentStream:
    reader, config = READERS[system]
    config = config(path=str(folder), workers=workers)
    return LatentStream(reader(config), config, seed, share, draws)


def draws(label: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {"noise": torch.randn(2, generator=generator), "label": torch.tensor(label)}


def take(stream: LatentStream, count: int, first_step: int = 0) -> list[LatentBatch]:
    batches = stream.micro_batches(first_step)
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


def by_position(batches: list[LatentBatch]) -> dict[int, list]:
    found = {}
    for batch in batches:
        assert torch.equal(batch.drawn["label"], batch.labels)
        rows = zip(batch.positions, batch.z, batch.labels, batch.drawn["noise"], strict=True)
        found |= {position: [z.tolist(), int(label), noise.tolist()] for position, z, label, noise in rows}
    return dict(sorted(found.items()))


@pytest.mark.parametrize("system", READERS)
def test_ranks_together_take_every_latent_once_in_an_epoch(system, folders) -> None:
    """Two ranks and one get the same, also after a restart and from a loader process."""
    one = by_position(take(stream_of(system, folders[system], Share(2, 2)), ITEMS))
    two: list[LatentBatch] = []
    for rank in range(2):
        share = Share(2, 1, rank=rank, world_size=2)
        two += take(stream_of(system, folders[system], share, workers=rank), 3)
        two += take(stream_of(system, folders[system], share), ITEMS - 3, first_step=3)
    assert list(one) == list(range(2 * ITEMS)) and by_position(two) == one
    epochs = [[one[position][1] for position in range(ITEMS * e, ITEMS * (e + 1))] for e in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) and epochs[0] != epochs[1]
    assert len({str(z) for z, *_ in one.values()}) > ITEMS  # mirror images, or other draws of the posterior
    assert len({str(noise) for *_, noise in one.values()}) == 2 * ITEMS


@pytest.mark.parametrize("system", READERS)
def test_batches_are_normalised_and_follow_the_seed(system, folders) -> None:
    (batch,) = take(stream_of(system, folders[system], Share(ITEMS, ITEMS)), 1)
    assert batch.z.dtype == torch.float32 and batch.labels.dtype == torch.int64
    assert batch.z.mean(dim=(0, 2, 3)).abs().max() < 0.3
    assert (batch.z.std(dim=(0, 2, 3)) - 1).abs().max() < 0.3
    assert (batch.images is None) == (system == "lightningdit")
    (other,) = take(stream_of(system, folders[system], Share(ITEMS, ITEMS), seed=4), 1)
    assert not torch.equal(batch.labels, other.labels) or not torch.equal(batch.z, other.z)


def test_the_description_counts_steps_per_epoch(folders) -> None:
    stream = stream_of("lightningdit", folders["lightningdit"], Share(4, 4))
    assert f"Data: {ITEMS} latents of the shape [4, 4, 4] in " in stream.describe()
    assert stream.describe().endswith("; 3 steps of 4 per epoch")
    assert stream.steps is None


def test_the_fingerprint_follows_labels_and_statistics(tmp_path) -> None:
    first, same = (write_latents(tmp_path / name, "lightningdit") for name in "ab")
    fingerprints = [stream_of("lightningdit", path, Share(1, 1)).fingerprint() for path in (first, same)]
    assert fingerprints[0] == fingerprints[1]
    write_statistics(same, MEAN, STD + 0.01)
    assert stream_of("lightningdit", same, Share(1, 1)).fingerprint() != fingerprints[0]


def test_ranks_with_other_latents_are_refused(folders, monkeypatch) -> None:
    monkeypatch.setattr("data.prefetched_stream.all_gather_objects", lambda value: [value, "another"])
    with pytest.raises(DataError, match=r"data\.path: rank 1 found other latents in .* than rank 0"):
        stream_of("lightningdit", folders["lightningdit"], Share(1, 1))
