"""Folders of sampled tokens: the same whatever batch, ranks and interruptions."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from common.errors import DataError, UserError
from data.token_kind import TokenKind
from evaluation.ar.samples import TokenSamples, token_draws
from evaluation.sampling.folder import SampleRequest, write_samples
from networks.ar.config import TokenSamplingConfig
from tests.faults.ranks import run_ranks
from tests.networks.ar.tiny import gpt

KIND = TokenKind(12, (4, 4), "a" * 64)
REQUEST = SampleRequest(count=11, seed=3, labels="balanced")


def maker(**options) -> TokenSamples:
    return TokenSamples(gpt(), TokenSamplingConfig(**{"cfg_scale": 2.0, **options}), KIND)


def write(folder: Path, rank: int = 0, batch_size: int = 3, request: SampleRequest = REQUEST, **options) -> None:
    write_samples(maker(**options), folder, request, batch_size=batch_size, samples_per_shard=4)


def samples(folder: Path) -> dict[str, Tensor]:
    shards = [load_file(path) for path in sorted(folder.glob("*.safetensors"))]
    return {name: torch.cat([shard[name] for shard in shards]).long() for name in ("tokens", "labels")}


@pytest.fixture
def whole(tmp_path) -> dict[str, Tensor]:
    write(tmp_path / "whole")
    return samples(tmp_path / "whole")


def test_a_sample_depends_on_its_number_seed_and_class_alone(whole, tmp_path) -> None:
    assert whole["tokens"].shape == (11, 1, 4, 4) and whole["labels"].tolist() == [n % 5 for n in range(11)]
    assert len(whole["tokens"].unique(dim=0)) == 11
    for batch_size in (1, 11):
        write(tmp_path / str(batch_size), batch_size=batch_size)
        assert torch.equal(samples(tmp_path / str(batch_size))["tokens"], whole["tokens"])
    alone = maker().columns([7], torch.tensor([2]), seed=3)["tokens"]
    assert torch.equal(alone.long(), whole["tokens"][7:8])
    assert torch.equal(token_draws([7], 16, 3)[0, :5], token_draws([5, 7], 5, 3)[1])


def test_two_ranks_make_the_samples_of_one(whole, tmp_path) -> None:
    run_ranks(2, partial(write, tmp_path / "two"), tmp_path, timeout_s=60)
    assert [path.name for path in sorted((tmp_path / "two").glob("*.safetensors"))] == [
        f"samples_rank{rank:02d}_shard{number:03d}.safetensors" for rank in (0, 1) for number in (0, 1)
    ]
    found = samples(tmp_path / "two")
    assert all(torch.equal(found[name], whole[name]) for name in whole)


def test_an_interrupted_run_goes_on_and_other_settings_are_refused(whole, tmp_path) -> None:
    (tmp_path / "whole" / "samples_rank00_shard001.safetensors").unlink()
    write(tmp_path / "whole")
    assert torch.equal(samples(tmp_path / "whole")["tokens"], whole["tokens"])
    with pytest.raises(DataError, match=r"sampling: found .*'top_k': 0.*, expected .*'top_k': 5"):
        write(tmp_path / "whole", top_k=5)


def test_weights_in_bf16_keep_positions_exact_and_are_the_same_weights() -> None:
    full, half = maker(), maker(precision="bf16")
    assert half.network.output.weight.dtype == torch.bfloat16 and half.network.rope.dtype == torch.float32
    assert full.identity()["weights_sha256"] == half.identity()["weights_sha256"]
    tokens = half.columns([0, 1], torch.tensor([0, 1]), seed=3)["tokens"].long()
    assert tokens.shape == (2, 1, 4, 4) and tokens.max() < 12


def test_guidance_without_a_null_class_is_refused_before_any_sample() -> None:
    with pytest.raises(UserError, match="no null class"):
        TokenSamples(gpt(class_dropout_prob=0.0), TokenSamplingConfig(), KIND)
