"""Weights of diffusion transformers, from checkpoint folders of this project or files of the reference.

A checkpoint of a run has `model.safetensors` (EMA), `model_raw.safetensors`, and `config.json`: the system as
`model_type`, the network, and under `latents` how the latents that it works on were normalised.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from common.checkpoint_folder import find_checkpoint
from common.errors import CheckpointError
from networks.checkpoint.fit import misfits
from networks.checkpoint.folder import read_folder_weights, read_manifest
from networks.checkpoint.origin import UNKNOWN_LICENCE, Origin
from networks.diffusion.loading import load_reference_weights
from networks.diffusion.transformer import DiffusionTransformer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DiffusionFolder:
    """A complete checkpoint folder of a diffusion model.

    Attributes:
        path: the folder.
        model: what its `config.json` says.
        manifest: what its manifest says; `config` is the configuration of the run.
    """

    path: Path
    model: dict[str, Any]
    manifest: dict[str, Any]


def read_diffusion_folder(path: str | Path) -> DiffusionFolder:
    """The checkpoint folder itself, or the newest complete one of a run folder.

    Raises: CheckpointError if there is none, it is damaged, or not of a diffusion model.
    """
    folder = find_checkpoint(path, log.warning)
    model = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if "network" not in model:
        kind = model.get("model_type", "another model")
        raise CheckpointError(f"{folder}: found a checkpoint of {kind}, expected one of a diffusion model.")
    return DiffusionFolder(folder, model, read_manifest(folder))


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
    folder = read_diffusion_folder(path)
    state = read_folder_weights(folder.path, weights)
    if problems := misfits(network.state_dict(), state):
        raise CheckpointError(f"{folder.path}: the weights do not fit the configuration: {problems}.")
    network.load_state_dict(state)
    return Origin.from_json(folder.manifest.get("derived_from"))
