"""Weights of diffusion transformers, from checkpoint folders of this project or files of the reference.

The `config.json` of a folder also says under `latents` how the latents that the network works on were normalised.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from networks.checkpoint.generator_folder import GeneratorFolder, read_generator_folder
from networks.checkpoint.origin import UNKNOWN_LICENCE, Origin
from networks.diffusion.loading import load_reference_weights
from networks.diffusion.transformer import DiffusionTransformer

SYSTEMS = ("lightningdit", "reg")


def read_diffusion_folder(path: str | Path) -> GeneratorFolder:
    """The checkpoint folder itself, or the newest complete one of a run folder.

    Raises: CheckpointError if there is none, it is damaged, or not of a diffusion model.
    """
    return read_generator_folder(path, SYSTEMS, "a diffusion model")


def load_diffusion_weights(
    network: DiffusionTransformer, path: str | Path, weights: Literal["ema", "raw"] = "ema"
) -> Origin | None:
    """Copy the weights of a checkpoint or run folder, or of a reference file, into a network; all, and nothing else.

    Args:
        weights: the EMA of the weights, or the weights themselves.

    Returns: where they come from, if not from training from scratch with this project.
    Raises: CheckpointError if there is nothing, it is damaged, or the weights do not fit.
    """
    if not Path(path).is_dir():
        load_reference_weights(network, path, weights)
        return Origin(Path(path).name, UNKNOWN_LICENCE)
    return read_diffusion_folder(path).load_weights(network, weights)
