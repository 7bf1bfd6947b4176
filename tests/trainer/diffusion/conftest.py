"""Fixtures of both diffusion systems."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.diffusion.tiny_runs import tiny_values, write_latents, write_target

SYSTEMS = ("lightningdit", "reg")


@pytest.fixture(scope="session")
def target(tmp_path_factory) -> Path:
    return write_target(tmp_path_factory.mktemp("target") / "dinov2")


@pytest.fixture(scope="session")
def latents(tmp_path_factory) -> dict[str, Path]:
    """The folder of each system."""
    folder = tmp_path_factory.mktemp("latents")
    return {system: write_latents(folder / system, system) for system in SYSTEMS}


@pytest.fixture
def values_of(latents, target, tmp_path) -> Callable[..., dict[str, Any]]:
    """The tiny configuration of a system, for a run of this name."""

    def make(system: str, name: str = "run") -> dict[str, Any]:
        return tiny_values(system, latents[system], tmp_path / name, target)

    return make
