"""Tiny runs whose processes can be broken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from common.checkpoint_folder import list_checkpoints
from tests.tiny import tiny_values, write_config
from tests.trainer.conftest import keep_signal_handlers, make_config, merged  # noqa: F401  (fixtures)


@pytest.fixture
def config_file(tiny_encoder, tiny_data, tmp_path) -> Callable[..., Path]:
    """Write the tiny configuration, with changes by dotted key, for a run folder of this name."""

    def write(name: str = "run", changes: dict[str, Any] | None = None) -> Path:
        values = merged(tiny_values(tiny_encoder, tiny_data, tmp_path / name), changes or {})
        return write_config(values, tmp_path / f"{name}.yaml")

    return write


def final_tensors(run_dir: Path) -> dict[str, torch.Tensor]:
    """Everything in the newest checkpoint of a run: networks, averages and optimisers."""
    folder = list_checkpoints(run_dir)[-1]
    return {
        f"{path.stem}/{name}": value for path in folder.glob("*.safetensors") for name, value in load_file(path).items()
    }


def largest_difference(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    """Largest absolute difference over all tensors."""
    assert one.keys() == two.keys()
    return max((one[name].double() - two[name].double()).abs().max().item() for name in one)
