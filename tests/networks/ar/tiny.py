"""Autoregressive models small enough for a test, with weights that hide nothing."""

from __future__ import annotations

from typing import Any

from networks.ar.config import GPTConfig
from networks.ar.gpt import GPT
from tests.golden.cases import fill

TINY: dict[str, Any] = {
    "n_layer": 2,
    "n_head": 2,
    "dim": 16,
    "vocab_size": 12,
    "block_size": 16,
    "num_classes": 5,
    "multiple_of": 8,
}


def gpt(**changes: Any) -> GPT:
    """A tiny network in eval mode; weights by the golden fill rule."""
    network = GPT(GPTConfig(**{**TINY, **changes}))
    network.load_state_dict({name: fill(name, list(value.shape)) for name, value in network.state_dict().items()})
    return network.eval()
