"""Files in the reference's layout, written on the fly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.config import parse_yaml
from tests.configs.reference_layout import CHANGES, REMOVE, STAGE_0, change


@pytest.fixture(scope="session")
def remove():
    """Stands for "this key is not given"."""
    return REMOVE


@pytest.fixture
def reference_stage(tmp_path, stage_0_values) -> Callable[..., Path]:
    """Writes a stage in the reference's layout, with further changes by dotted key."""

    def write(stage: int, changes: dict | None = None) -> Path:
        path = tmp_path / f"stage{stage}.yaml"
        path.write_text(yaml.safe_dump(change(stage_0_values, {**CHANGES[stage], **(changes or {})})))
        return path

    return write


@pytest.fixture
def stage_0_values() -> dict[str, Any]:
    """Published stage 0 as parsed values."""
    return parse_yaml(STAGE_0, "stage 0")
