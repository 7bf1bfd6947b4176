"""Checkpoint folders of networks that generate latents or tokens.

A checkpoint of a run has `model.safetensors` (EMA), `model_raw.safetensors`, and `config.json`: the system as
`model_type`, the network, and what it takes to use what the network generates.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from common.checkpoint_folder import find_checkpoint
from common.errors import CheckpointError
from networks.checkpoint.fit import misfits
from networks.checkpoint.folder import read_folder_weights, read_manifest
from networks.checkpoint.origin import Origin

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GeneratorFolder:
    """A complete checkpoint folder of such a network.

    Attributes:
        path: the folder.
        model: what its `config.json` says.
        manifest: what its manifest says; `config` is the configuration of the run.
    """

    path: Path
    model: dict[str, Any]
    manifest: dict[str, Any]

    def load_weights(self, network: nn.Module, weights: Literal["ema", "raw"]) -> Origin | None:
        """Copy the weights into a network; all, and nothing else. Returns where they come from, if from elsewhere.

        Raises: CheckpointError if they do not fit.
        """
        state = read_folder_weights(self.path, weights)
        if problems := misfits(network.state_dict(), state):
            raise CheckpointError(f"{self.path}: the weights do not fit the configuration: {problems}.")
        network.load_state_dict(state)
        return Origin.from_json(self.manifest.get("derived_from"))


def read_generator_folder(path: str | Path, systems: Collection[str], what: str) -> GeneratorFolder:
    """The checkpoint folder itself, or the newest complete one of a run folder.

    Args:
        systems: those that its network may be of.
        what: what these train, for messages.

    Raises: CheckpointError if there is none, it is damaged, or of another system.
    """
    folder = find_checkpoint(path, log.warning)
    model = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kind = model.get("model_type", "another model")
    if kind not in systems:
        raise CheckpointError(f"{folder}: found a checkpoint of {kind}, expected one of {what}.")
    return GeneratorFolder(folder, model, read_manifest(folder))
