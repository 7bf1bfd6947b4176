"""Checkpoints of a run: everything that is needed to go on as if nothing had happened."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor, nn

from common.checkpoint_folder import (
    checkpoint_path,
    list_checkpoints,
    newest_complete,
    remove_partial_checkpoints,
    set_aside_newer,
    write_checkpoint,
)
from common.errors import CheckpointError
from networks.checkpoint.folder import save_tensors
from trainer.best import Best, show_best
from trainer.config import CheckpointConfig
from trainer.optimizer import load_optimizer_tensors, optimizer_tensors
from trainer.systems.base import System

if TYPE_CHECKING:
    from configs.experiment import Experiment

log = logging.getLogger(__name__)


def model_file(network: str, average: bool) -> str:
    """File of a network's weights: `model` is the tokenizer or backbone itself, other networks have their own name."""
    stem = "model" if network in ("tokenizer", "backbone") else network
    return f"{stem}.safetensors" if average else f"{stem}_raw.safetensors"


def save(
    run_dir: Path,
    system: System,
    optimizers: Mapping[str, torch.optim.Optimizer],
    state: Mapping[str, Any],
    config: Experiment,
    data_sha256: str,
    options: CheckpointConfig,
) -> Path:
    """Write a checkpoint and remove old ones. Called on one rank.

    Args:
        state: the trainer's counters, JSON values; `state["nimg"]` names the checkpoint, `state["derived_from"]` says
            where the weights come from that the run started with, `state["best"]` which checkpoint is the best.
        config: the resolved configuration.
        data_sha256: fingerprint of the data, for without the same data a position means another sample.

    Raises: OSError if it cannot be written, CheckpointError if a value is not finite; the checkpoints before it are
        untouched then.
    """

    def fill(folder: Path) -> None:
        for name, network in system.networks.items():
            _save_finite(network.state_dict(), folder / model_file(name, average=False))
        for name, network in system.averages.items():
            _save_finite(network.state_dict() | system.frozen_tensors(), folder / model_file(name, average=True))
        system.write_frozen_files(folder)
        for phase in system.phases:
            tensors = optimizer_tensors(optimizers[phase.name], phase.parameters)
            _save_finite(tensors, folder / f"optimizer_{phase.name}.safetensors")
        _save_json(state, folder / "training_state.json")
        _save_json(system.model_config(), folder / "config.json")

    target = checkpoint_path(run_dir, state["nimg"])
    best = Best.from_json(state["best"])
    facts = {
        "nimg": state["nimg"],
        "step": state["step"],
        "ordinal": state["checkpoints_written"],
        "config": config.model_dump(mode="json"),
        "data_sha256": data_sha256,
        "derived_from": state["derived_from"],
        **system.facts(),
    }
    write_checkpoint(target, fill, facts)
    show_best(run_dir, best)
    _rotate(run_dir, options, spared=None if best is None else checkpoint_path(run_dir, best.nimg))
    return target


def load(
    folder: Path,
    system: System,
    optimizers: Mapping[str, torch.optim.Optimizer],
    config: Experiment,
    data_sha256: str,
) -> dict[str, Any]:
    """Restore a checkpoint that `verify` has accepted; returns the trainer's counters.

    Raises: CheckpointError if the run's configuration, data or encoder is not that of the run that wrote it.
    """
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    require_same_run(folder, manifest["config"], config)
    if manifest["data_sha256"] != data_sha256:
        raise CheckpointError(
            f"{folder}: data.path holds other shards or samples than when this run was started, so its place in the "
            "data means nothing there; restore them, or start a new run.run_dir with training.init_from."
        )
    system.require_same_frozen_parts(manifest, str(folder))
    for name, network in system.networks.items():
        _load_exactly(network, folder / model_file(name, average=False))
    for name, network in system.averages.items():
        _load_exactly(network, folder / model_file(name, average=True))
    load_optimizers(folder, system, optimizers)
    return json.loads((folder / "training_state.json").read_text(encoding="utf-8"))


def load_optimizers(folder: Path, system: System, optimizers: Mapping[str, torch.optim.Optimizer]) -> None:
    """Restore the optimisers' state of a checkpoint. Raises CheckpointError if it is of other networks."""
    for phase in system.phases:
        path = folder / f"optimizer_{phase.name}.safetensors"
        if not path.is_file():
            raise CheckpointError(f"{path}: missing; only checkpoints that a training wrote have it.")
        try:
            load_optimizer_tensors(optimizers[phase.name], phase.parameters, load_file(path))
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error


def newest(run_dir: Path) -> Path | None:
    """The newest complete checkpoint of a run; damaged ones after it are named in the log and set aside.

    Raises: CheckpointError if all of them are damaged, or one is of a newer version.
    """
    remove_partial_checkpoints(run_dir)
    folder = newest_complete(run_dir, log.warning)
    if folder is not None:
        set_aside_newer(folder)
    return folder


def require_same_run(folder: Path, stored: Mapping[str, Any], config: Experiment) -> None:
    """Refuse to resume a run under another configuration.

    A key that did not exist when the checkpoint was written counts with its default.

    Raises: CheckpointError that names the keys.
    """
    with contextlib.suppress(ValidationError):
        stored = type(config).model_validate(stored).model_dump(mode="json")
    differences = [
        f"  {key}: {old!r} in the checkpoint, {new!r} now"
        for key, old, new in _differences(stored, config.model_dump(mode="json"))
        if not any(key == free or key.startswith(free + ".") for free in config.MAY_CHANGE)
    ]
    if differences:
        raise CheckpointError(
            f"{folder}: this run was started with another configuration:\n"
            + "\n".join(differences)
            + "\nPut the old values back to resume it, or choose another run.run_dir (with training.init_from to start "
            "from its weights)."
        )


def _differences(old: Any, new: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return [
            found
            for key in sorted({*old, *new})
            for found in _differences(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else key)
        ]
    return [] if old == new else [(prefix, old, new)]


def _rotate(run_dir: Path, options: CheckpointConfig, spared: Path | None) -> None:
    """Keep the newest checkpoints, those whose ordinal (in their manifest) is a multiple of `keep_every`, and one."""
    folders = list_checkpoints(run_dir)
    for folder in folders[: -options.keep_last]:
        if folder != spared and (options.keep_every is None or _ordinal(folder) % options.keep_every):
            shutil.rmtree(folder, ignore_errors=True)


def _ordinal(folder: Path) -> int:
    """Which checkpoint of its run this is, from 1; 0, which every `keep_every` keeps, if its manifest is damaged."""
    try:
        return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["ordinal"]
    except (OSError, ValueError, KeyError):
        return 0


def _save_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    for name, value in tensors.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise CheckpointError(
                f"{path.name}: {name} holds a value that is not finite, so this checkpoint is not written; those "
                "before it are intact. Resume from there with a lower learning rate (training.init_from)."
            )
    save_tensors(tensors, path)


def _save_json(value: Mapping[str, Any], path: Path) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _load_exactly(network: nn.Module, path: Path) -> None:
    tensors = {name: value for name, value in load_file(path).items() if not name.startswith("encoder.")}
    try:
        network.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: the weights do not fit this run's networks ({error}).") from error
