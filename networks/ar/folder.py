"""Weights of autoregressive models, from checkpoint folders of this project or files of the reference.

The `config.json` of a folder also says under `tokens` whose tokens the network was trained on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from networks.ar.gpt import GPT
from networks.ar.loading import load_reference_weights
from networks.checkpoint.generator_folder import GeneratorFolder, read_generator_folder
from networks.checkpoint.origin import UNSTATED_LICENCE, Origin

SYSTEM = "gpt_c2i"


def read_gpt_folder(path: str | Path) -> GeneratorFolder:
    """The checkpoint folder itself, or the newest complete one of a run folder.

    Raises: CheckpointError if there is none, it is damaged, or not of an autoregressive model.
    """
    return read_generator_folder(path, (SYSTEM,), "an autoregressive model")


def load_gpt_weights(network: GPT, path: str | Path, weights: Literal["ema", "raw"] = "ema") -> Origin | None:
    """Copy the weights of a checkpoint or run folder, or of a reference file, into a network; all, and nothing else.

    Args:
        weights: the EMA of the weights, or the weights themselves.

    Returns: where they come from, if not from training from scratch with this project.
    Raises: CheckpointError if there is nothing, it is damaged, or the weights do not fit.
    """
    if not Path(path).is_dir():
        load_reference_weights(network, path, weights)
        return Origin(Path(path).name, UNSTATED_LICENCE)
    return read_gpt_folder(path).load_weights(network, weights)
