"""What the measurement of sampling reports."""

from __future__ import annotations

import pytest
import torch

from evaluation.ar.cost import as_table, measure_sampling
from networks.ar.config import GPTConfig, TokenSamplingConfig
from tests.networks.ar.tiny import TINY


def test_a_cache_makes_sampling_faster_and_its_cost_grows_with_the_tokens_alone() -> None:
    """A small network on long sequences: 256 tokens of width 64."""
    config = GPTConfig(**{**TINY, "dim": 64, "n_layer": 2, "block_size": 256})
    record = measure_sampling(config, TokenSamplingConfig(cfg_scale=1.0), torch.device("cpu"), images=8, repeats=2)
    seconds = record["seconds"]
    assert (
        record["speed_up"] == pytest.approx(seconds["without_cache"] / seconds["with_cache"])
        and record["tokens"] == 256
    )
    assert record["speed_up"] > 2 and record["whole_over_half"] < 3
    assert "256 tokens without cache" in as_table(record)
