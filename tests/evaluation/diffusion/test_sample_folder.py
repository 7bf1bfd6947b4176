"""Folders of samples."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from common.errors import DataError, UserError
from data.latents import LatentNormalisation
from data.sample_shards import open_samples, read_labels
from evaluation import output_folder
from evaluation.diffusion.latent_samples import LatentSamples
from evaluation.sampling import folder as sample_folder
from evaluation.sampling.folder import SampleRequest, write_samples
from tests.evaluation.diffusion.tiny_samplers import lightningdit_sampler, reg_sampler
from tests.faults.ranks import run_ranks

NORMALISATION = LatentNormalisation(torch.ones(5, 1, 1), torch.full((5, 1, 1), 4.0), multiplier=2.0)
REQUEST = SampleRequest(count=11, seed=3, labels="balanced")


def write(folder: Path, request: SampleRequest = REQUEST, sampler=None, **options):
    options = {"batch_size": 3, "samples_per_shard": 4, **options}
    return write_samples(LatentSamples(sampler or lightningdit_sampler(), NORMALISATION), folder, request, **options)


def samples(folder: Path) -> dict[str, Tensor]:
    """All samples in the order of the files."""
    shards = [load_file(path) for path in sorted(folder.glob("*.safetensors"))]
    return {name: torch.cat([shard[name] for shard in shards]) for name in ("latents", "labels")}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


def manifest(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


@pytest.fixture
def whole(tmp_path):
    write(tmp_path / "whole")
    return tmp_path / "whole"


def test_shards_hold_denormalised_latents_and_labels_in_order(whole):
    assert list(contents(whole)) == [f"samples_rank00_shard{number:03d}.safetensors" for number in range(3)]
    found = samples(whole)
    assert found["latents"].dtype == torch.float32 and found["latents"].shape == (11, 5, 4, 4)
    assert found["labels"].dtype == torch.int32 and found["labels"].tolist() == [*range(10), 0]
    alone = lightningdit_sampler().sample([7], torch.tensor([7]), seed=3)
    torch.testing.assert_close(found["latents"][7:8], 2 * alone + 1, atol=1e-5, rtol=0)


def test_decode_tools_read_the_shards(whole):
    shards = open_samples(whole).shards
    assert [(shard.rows, shard.shape) for shard in shards] == [(4, (5, 4, 4)), (4, (5, 4, 4)), (3, (5, 4, 4))]
    assert [label for shard in shards for label in read_labels(shard)] == [*range(10), 0]


def test_manifest_says_what_the_samples_were_made_by(whole):
    found = manifest(whole)
    assert found["status"] == "complete" and found["shares"] == 1
    assert found["request"] == {"count": 11, "seed": 3, "labels": "balanced", "classes": None}
    assert found["sampling"]["cfg_scale"] == 3.0 and found["transport"]["path_type"] == "Linear"
    assert len(found["weights_sha256"]) == 64


@pytest.mark.parametrize("batch_size", [1, 8])
def test_samples_do_not_depend_on_the_batch_size(batch_size, whole, tmp_path):
    write(tmp_path / "out", batch_size=batch_size)
    found, expected = samples(tmp_path / "out"), samples(whole)
    torch.testing.assert_close(found["latents"], expected["latents"], atol=1e-5, rtol=0)
    assert torch.equal(found["labels"], expected["labels"])


def test_every_batch_has_the_full_size(tmp_path):
    sampler = lightningdit_sampler(cfg_scale=1.0)
    sizes = set()
    sampler.network.register_forward_hook(lambda module, arguments, output: sizes.add(len(output)))
    write(tmp_path, sampler=sampler)
    assert sizes == {3}


def test_two_ranks_make_the_same_samples_as_one(tmp_path):
    sampler = reg_sampler()
    write(tmp_path / "one", sampler=sampler)

    def work(rank: int) -> list[int]:
        summary = write(tmp_path / "two", sampler=sampler)
        return [summary.written, summary.kept]

    assert run_ranks(2, work, tmp_path) == [[11, 0], [11, 0]]
    names = [f"samples_rank{rank:02d}_shard{number:03d}.safetensors" for rank in (0, 1) for number in (0, 1)]
    assert list(contents(tmp_path / "two")) == names
    one, two = samples(tmp_path / "one"), samples(tmp_path / "two")
    torch.testing.assert_close(two["latents"], one["latents"], atol=1e-5, rtol=0)
    assert torch.equal(two["labels"], one["labels"])

    before = contents(tmp_path / "two")
    for name in names[1:]:
        (tmp_path / "two" / name).unlink()
    assert write(tmp_path / "two", sampler=sampler).kept == 4  # and one rank completes what two began
    assert contents(tmp_path / "two") == before


def test_interrupted_run_is_completed_and_ends_with_the_same_files(whole, tmp_path, monkeypatch):
    original, written = sample_folder.write_shard, []

    def dies_at_the_third(path, tensors):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path.name)
        original(path, tensors)

    monkeypatch.setattr(sample_folder, "write_shard", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "out")
    assert manifest(tmp_path / "out")["status"] == "running" and len(contents(tmp_path / "out")) == 2
    monkeypatch.setattr(sample_folder, "write_shard", original)
    summary = write(tmp_path / "out")
    assert (summary.written, summary.kept) == (3, 8)
    assert contents(tmp_path / "out") == contents(whole)
    assert manifest(tmp_path / "out")["status"] == "complete"


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"request": SampleRequest(count=11, seed=4, labels="balanced")}, "request: found .*'seed': 3"),
        ({"sampler": lightningdit_sampler(cfg_scale=2.0)}, "sampling: found .*'cfg_scale': 3.0"),
        ({"samples_per_shard": 5}, "samples_per_shard: found 4, expected 5"),
    ],
)
def test_samples_of_another_run_are_not_taken_over(change, key, whole):
    before = contents(whole)
    with pytest.raises(DataError, match=f"{key}.*choose an empty --output-dir"):
        write(whole, **change)
    assert contents(whole) == before


def test_other_statistics_of_the_latents_are_noticed(whole):
    for change, key in (({"mean": torch.zeros(5, 1, 1)}, "statistics_sha256"), ({"multiplier": 1.0}, "multiplier")):
        other = replace(NORMALISATION, **change)
        with pytest.raises(DataError, match=f"{key}: found"):
            write_samples(
                LatentSamples(lightningdit_sampler(), other), whole, REQUEST, batch_size=3, samples_per_shard=4
            )


def test_foreign_shards_are_refused(whole):
    shutil.copy(whole / "samples_rank00_shard000.safetensors", whole / "samples_rank07_shard000.safetensors")
    with pytest.raises(DataError, match=r"samples_rank07_shard000\.safetensors: is no shard of this run"):
        write(whole)
    (whole / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"manifest\.json: cannot be read"):
        write(whole)


def test_full_disk_is_told_and_what_is_finished_is_kept(tmp_path, monkeypatch):
    def full(path, write):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(output_folder, "write_atomically", full)
    with pytest.raises(DataError, match=r"shard000\.safetensors: cannot be written .*No space left.*make room"):
        write(tmp_path)


def test_sample_that_is_not_finite_is_named(tmp_path):
    sampler = lightningdit_sampler()
    with torch.no_grad():
        sampler.network.final_layer.linear.bias[0] = float("nan")
    with pytest.raises(DataError, match="sample 0: its latent is not finite; check the weights"):
        write(tmp_path, sampler=sampler)
    assert contents(tmp_path) == {}


def test_unknown_classes_are_refused(tmp_path):
    with pytest.raises(UserError, match="classes: found 10, expected numbers from 0 to 9"):
        write(tmp_path, SampleRequest(count=2, classes=(3, 10)))
    with pytest.raises(UserError, match="classes: found none"):
        write(tmp_path, SampleRequest(count=2, classes=()))
