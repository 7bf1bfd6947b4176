"""Fixtures of the autoregressive system."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.ar.tiny_runs import on_images, run_values, write_discrete_tokenizer, write_tokens


@pytest.fixture(scope="session")
def tokens(tmp_path_factory) -> Path:
    return write_tokens(tmp_path_factory.mktemp("tokens") / "tokens")


@pytest.fixture(scope="session")
def discrete_tokenizer(tiny_encoder, tmp_path_factory) -> Path:
    return write_discrete_tokenizer(tmp_path_factory.mktemp("tokenizer") / "discrete", tiny_encoder)


@pytest.fixture
def values_of(tokens, tiny_data, discrete_tokenizer, tmp_path) -> Callable[..., dict[str, Any]]:
    """The tiny configuration on "tokens" or "images", for a run of this name."""

    def make(source: str, name: str = "run") -> dict[str, Any]:
        values = run_values(tokens, tmp_path / name)
        return values if source == "tokens" else on_images(values, tiny_data, discrete_tokenizer)

    return make
