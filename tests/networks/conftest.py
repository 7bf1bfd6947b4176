"""Tiny saved models of every encoder family."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.networks.tiny_encoders import TINY


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A saved model of each family, in a folder whose name tells nothing."""
    root = tmp_path_factory.mktemp("models")
    paths = {name: root / f"model{number}" for number, name in enumerate(TINY)}
    for name, path in paths.items():
        TINY[name].save(path)
    return paths
