"""The reference's checkpoints of diffusion transformers.

LightningDiT   {step:07d}.pt = {"model", "ema": state dicts, "opt": optimiser, "config": its YAML}
REG            {step:07d}.pt = {"model", "ema": state dicts, "opt": optimiser, "args": argparse.Namespace, "steps"}

The networks of this project have the names of these state dicts, so nothing is renamed.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from common.errors import CheckpointError
from common.torch_file import read_torch_file
from networks.checkpoint.fit import misfits
from networks.diffusion.transformer import DiffusionTransformer

log = logging.getLogger(__name__)

_PARALLEL = "module."  # what DistributedDataParallel puts in front of every name
_STATE_DICTS = ("ema", "model")


def load_reference_weights(
    network: DiffusionTransformer, path: str | Path, weights: Literal["ema", "raw"] = "ema"
) -> None:
    """Copy the weights of a reference checkpoint into a network; all of them, and nothing else.

    Args:
        weights: the EMA of the weights, or the weights themselves; the other where a file has only one of the two.

    Raises: CheckpointError if the file cannot be read, or names every kind of weight that does not fit.
    """
    state = read_reference_weights(path, weights)
    if problems := misfits(network.state_dict(), state):
        raise CheckpointError(f"{path}: the weights do not fit the configuration: {problems}.{_hint(network, state)}")
    network.load_state_dict(state)


def read_reference_weights(path: str | Path, weights: Literal["ema", "raw"] = "ema") -> dict[str, Tensor]:
    """The weights of a reference checkpoint, or of a file that is just a state dict, on the CPU.

    Tensors stay on disk until they are used, and nothing in the file is ever executed. REG keeps the arguments of its
    training as an argparse.Namespace: making one and filling it runs no code, so it may be there.

    Args:
        weights: as of `load_reference_weights`.

    Raises: CheckpointError if the file is missing, damaged, would execute code, or holds no such weights.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"{path}: no such file; expected a checkpoint of the reference, e.g. 0700000.pt.")
    content = read_torch_file(path, records=[argparse.Namespace])
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: found {type(content).__name__}, expected a dictionary of state dicts.")
    found = [name for name in _STATE_DICTS if name in content]
    if found:
        wanted = "model" if weights == "raw" else "ema"
        name = wanted if wanted in found else found[0]
        if name != wanted:
            log.info("%s: has no %s; %s is used.", path, wanted, name)
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


def _hint(network: DiffusionTransformer, state: Mapping[str, Tensor]) -> str:
    """What in the configuration probably differs from that of the file."""

    def has_head_norms(names: Mapping[str, Tensor]) -> bool:
        return any(name.endswith("attn.q_norm.weight") for name in names)

    if has_head_norms(state) != has_head_norms(network.state_dict()):
        key = "use_qknorm" if hasattr(network.config, "use_qknorm") else "qk_norm"
        return f" Set {key}: {str(has_head_norms(state)).lower()}, as the file was trained."
    return ""
