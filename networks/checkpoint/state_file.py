"""Weights in files that other programs saved with torch: {"model", "ema": state dicts, and more}, or a state dict."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from common.errors import CheckpointError
from common.torch_file import read_torch_file

log = logging.getLogger(__name__)

_PARALLEL = "module."  # what DistributedDataParallel puts in front of every name
_RAW = ("model", "module", "state_dict")
_PREFERRED = {"ema": ("ema", *_RAW), "raw": (*_RAW, "ema")}


def read_state_file(
    path: str | Path, weights: Literal["ema", "raw"] = "ema", example: str = "0700000.pt"
) -> dict[str, Tensor]:
    """The weights of such a file, on the CPU.

    Tensors stay on disk until they are used, and nothing in the file is ever executed. Some keep the arguments of their
    training as an argparse.Namespace: making one and filling it runs no code, so it may be there.

    Args:
        weights: the EMA of the weights, or the weights themselves; the other where a file has only one of the two.
        example: name of such a file.

    Raises: CheckpointError if the file is missing, damaged, would execute code, or holds no such weights.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"{path}: no such file; expected a checkpoint of the reference, e.g. {example}.")
    content = read_torch_file(path, records=[argparse.Namespace])
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: found {type(content).__name__}, expected a dictionary of state dicts.")
    names = _PREFERRED[weights]
    name = next((name for name in names if name in content), None)
    if name is not None:
        if name != names[0]:
            log.info("%s: has no %s; %s is used.", path, names[0], name)
        content, where = content[name], f"{path}: {name}"
    else:
        where = str(path)
    return _without_parallel_prefix(_state_dict(content, where))


def _state_dict(value: Any, where: str) -> Mapping[str, Tensor]:
    """Checked to be one. Raises CheckpointError that says what it is instead."""
    if not isinstance(value, Mapping) or not value:
        kind = "empty" if isinstance(value, Mapping) else f"a {type(value).__name__}"
        raise CheckpointError(f"{where} is {kind}, expected a state dict.")
    for name, tensor in value.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(
                f"{where}: entry {name!r} is {type(tensor).__name__}, expected a tensor; a checkpoint has its weights "
                "under ema or model."
            )
    return value


def _without_parallel_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(_PARALLEL): value for name, value in state.items()}
