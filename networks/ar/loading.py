"""The reference's checkpoints of autoregressive models.

LlamaGen, VFMTok   <model>-<step>.pt = {"model" or "module", "ema": state dicts, "args": argparse.Namespace, ...}

The network of this project has the names of these state dicts, so nothing is renamed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from common.errors import CheckpointError
from networks.ar.gpt import GPT
from networks.checkpoint.fit import misfits
from networks.checkpoint.state_file import read_state_file

_TABLE = "tok_embeddings.weight"


def load_reference_weights(network: GPT, path: str | Path, weights: Literal["ema", "raw"] = "ema") -> None:
    """Copy the weights of a reference checkpoint into a network; all of them, and nothing else.

    Args:
        weights: the EMA of the weights, or the weights themselves; the other where a file has only one of the two.

    Raises: CheckpointError if the file cannot be read, or names every kind of weight that does not fit.
    """
    state = read_state_file(path, weights, example="GPT-L-0750000.pt")
    if problems := misfits(network.state_dict(), state):
        table = state.get(_TABLE)
        size = "" if table is None else f" Its embeddings of tokens are {list(table.shape)}: [vocab_size, dim]."
        raise CheckpointError(f"{path}: the weights do not fit the configuration: {problems}.{size}")
    network.load_state_dict(state)
