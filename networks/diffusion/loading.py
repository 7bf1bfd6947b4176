"""The reference's checkpoints of diffusion transformers.

LightningDiT   {step:07d}.pt = {"model", "ema": state dicts, "opt": optimiser, "config": its YAML}
REG            {step:07d}.pt = {"model", "ema": state dicts, "opt": optimiser, "args": argparse.Namespace, "steps"}

The networks of this project have the names of these state dicts, so nothing is renamed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from torch import Tensor

from common.errors import CheckpointError
from networks.checkpoint.fit import misfits
from networks.checkpoint.state_file import read_state_file
from networks.diffusion.transformer import DiffusionTransformer


def load_reference_weights(
    network: DiffusionTransformer, path: str | Path, weights: Literal["ema", "raw"] = "ema"
) -> None:
    """Copy the weights of a reference checkpoint into a network; all of them, and nothing else.

    Args:
        weights: the EMA of the weights, or the weights themselves; the other where a file has only one of the two.

    Raises: CheckpointError if the file cannot be read, or names every kind of weight that does not fit.
    """
    state = read_state_file(path, weights)
    if problems := misfits(network.state_dict(), state):
        raise CheckpointError(f"{path}: the weights do not fit the configuration: {problems}.{_hint(network, state)}")
    network.load_state_dict(state)


def _hint(network: DiffusionTransformer, state: Mapping[str, Tensor]) -> str:
    """What in the configuration probably differs from that of the file."""

    def has_head_norms(names: Mapping[str, Tensor]) -> bool:
        return any(name.endswith("attn.q_norm.weight") for name in names)

    if has_head_norms(state) != has_head_norms(network.state_dict()):
        key = "use_qknorm" if hasattr(network.config, "use_qknorm") else "qk_norm"
        return f" Set {key}: {str(has_head_norms(state)).lower()}, as the file was trained."
    return ""
