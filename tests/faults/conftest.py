"""Tiny runs whose processes can be broken."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from common.checkpoint_folder import list_checkpoints
from tests.tiny import SMALL, tiny_values, write_config
from tests.trainer.conftest import config_of_run, make_config, merged, narrow_patchgan  # noqa: F401  (fixtures)


@pytest.fixture(scope="session")
def config_in(tiny_encoder, tiny_data) -> Callable[..., Path]:
    """Write the tiny configuration at its smallest, with changes by dotted key, for a run of this name in a folder."""

    def write(folder: Path, name: str = "run", changes: dict[str, Any] | None = None) -> Path:
        values = merged(tiny_values(tiny_encoder, tiny_data, folder / name), {**SMALL, **(changes or {})})
        return write_config(values, folder / f"{name}.yaml")

    return write


@pytest.fixture
def config_file(config_in, tmp_path) -> Callable[..., Path]:
    """The same in the folder of the test."""
    return partial(config_in, tmp_path)


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
