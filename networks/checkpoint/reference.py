"""The reference's files: `.pth` of VFM-VAE, `.pt` of VFMTok.

network-snapshot-<kimg, 8 digits>.pth = {
    "G", "G_ema":            state dicts of the generator and its EMA, the frozen encoder among them
    "D":                     state dict of the discriminators
    "training_set_kwargs":   options of the training data
    "derived_from":          only in files written here: origin and licence of the weights; the reference ignores it
}
vit_vqgan_step_<step>.pt = {
    "model", "ema":          state dicts of the tokenizer and its EMA, without the frozen encoder
    "discriminator":         state dict of the discriminator
    "optimizer", ...:        what is not read here
}
"""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from common.errors import CheckpointError
from common.files import write_atomically
from common.torch_file import read_torch_file
from networks.checkpoint.names import ENCODER, LEFT_OUT, TOKENIZER, Rows, to_own_name, to_reference_name
from networks.checkpoint.origin import UNKNOWN_LICENCE, UNSTATED_LICENCE, Origin

log = logging.getLogger(__name__)

_LAYOUTS = (("G", "G_ema", "D"), ("model", "ema", "discriminator"))  # raw weights, their EMA, discriminators


@dataclass(frozen=True)
class ReferenceCheckpoint:
    """What a file of the reference holds, by the reference's names, on the CPU.

    Attributes:
        average: EMA of the generator's weights; the weights themselves where a file has only one of the two.
        raw: the generator's weights, if the file has both.
        discriminator: weights of the discriminators.
        training_set_kwargs: options of the training data.
        origin: where the weights come from.
        entries: what the raw weights and their EMA are called in the file.
    """

    average: Mapping[str, Tensor]
    raw: Mapping[str, Tensor] | None
    discriminator: Mapping[str, Tensor] = field(default_factory=dict)
    training_set_kwargs: Mapping[str, Any] = field(default_factory=dict)
    origin: Origin | None = None
    entries: tuple[str, str] = _LAYOUTS[0][:2]


def read_reference(path: str | Path) -> ReferenceCheckpoint:
    """A file of the reference, or one that is just the state dict of its generator.

    Tensors stay on disk until they are used (memory-mapped), and nothing in the file is ever executed.

    Raises: CheckpointError if it is missing, damaged, would execute code, or is no such file.
    """
    require_file(path)
    content = read_torch_file(path, records=[argparse.Namespace])  # VFMTok's files keep their arguments
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: found {type(content).__name__}, expected a dictionary of tensors.")
    layout = next((names for names in _LAYOUTS if any(isinstance(content.get(n), Mapping) for n in names)), None)
    if layout is None:
        layout = _LAYOUTS[0]
        content = {layout[1]: content}
    licence = UNKNOWN_LICENCE if layout == _LAYOUTS[0] else UNSTATED_LICENCE
    origin = Origin.from_json(content.get("derived_from")) or Origin(Path(path).name, licence)
    raw, average, discriminator = (_state_dict(content.get(name, {}), f"{path}: {name}") for name in layout)
    options = content.get("training_set_kwargs", {})
    if not isinstance(options, Mapping):
        raise CheckpointError(f"{path}: training_set_kwargs is {type(options).__name__}, expected a dictionary.")
    if not (raw or average):
        raise CheckpointError(f"{path}: holds no weights of a generator, expected them as {layout[1]} or {layout[0]}.")
    if not (raw and average):
        log.info("%s: has no %s; the other one is used.", path, layout[1] if raw else layout[0])
    both = raw if raw and average else None
    return ReferenceCheckpoint(average or raw, both, discriminator, options, origin, layout[:2])


def require_file(path: str | Path) -> None:
    """Raise CheckpointError if there is no file."""
    if not Path(path).is_file():
        raise CheckpointError(f"{path}: no such file; expected a checkpoint folder or a reference .pth.")


def write_reference(path: Path, checkpoint: ReferenceCheckpoint) -> None:
    """Write a file that the reference loads.

    Raises: CheckpointError if the disk is full or the folder cannot be written; nothing is left behind then.
    """
    content = {
        "G": dict(checkpoint.average if checkpoint.raw is None else checkpoint.raw),
        "D": dict(checkpoint.discriminator),
        "G_ema": dict(checkpoint.average),
        "training_set_kwargs": dict(checkpoint.training_set_kwargs),
    }
    if checkpoint.origin is not None:
        content["derived_from"] = checkpoint.origin.to_json()
    try:
        write_atomically(path, lambda partial: torch.save(content, partial))
    except (OSError, RuntimeError) as error:  # torch makes a RuntimeError of a full disk
        raise CheckpointError(f"{path}: cannot be written ({error}).") from error


def snapshot_name(nimg: int) -> str:
    """The reference's name for a file after `nimg` images."""
    return f"network-snapshot-{nimg // 1000:08d}.pth"


def snapshot_nimg(path: str | Path) -> int | None:
    """Images seen, to the thousand, from a file's name; None if it is not named in the reference's way."""
    found = re.match(r"network-snapshot-(\d+)", Path(path).name)
    return 1000 * int(found[1]) if found else None


def read_reference_weights(
    path: str | Path,
    weights: Literal["ema", "raw"] = "ema",
    encoder_family: str | None = None,
    names: Rows = TOKENIZER,
) -> dict[str, Tensor]:
    """Weights of a reference `.pth` under own names.

    Args:
        weights: the EMA of the weights, or the weights themselves; the other where the file has only one.
        encoder_family: family of the frozen encoder, whose weights are then among them; None: they are left out.
        names: table own <-> reference names.

    Raises: CheckpointError if the file cannot be read, or holds names that no table knows.
    """
    checkpoint = read_reference(path)
    state = checkpoint.raw if weights == "raw" and checkpoint.raw is not None else checkpoint.average
    own = to_own_state(state, str(path), encoder_family, names)
    if encoder_family is not None:
        return own
    kept = {name: value for name, value in own.items() if not name.startswith(ENCODER)}
    if len(kept) < len(own):
        dropped = len(own) - len(kept)
        log.info("%s: left out %d weights of the frozen encoder, which is loaded from its own files.", path, dropped)
    return kept


def to_own_state(
    state: Mapping[str, Tensor], where: str, encoder_family: str | None = None, names: Rows = TOKENIZER
) -> dict[str, Tensor]:
    """A state dict of the reference's generator under own names.

    Args:
        encoder_family: family of the frozen encoder; None leaves its weights under the names that they have.
        names: table own <-> reference names; entries that `LEFT_OUT` names are counted in the log and left out.

    Raises: CheckpointError that counts and names entries which no table knows.
    """
    own, unknown = {}, []
    left_out = [name for name in state if LEFT_OUT.search(name)]
    for name, value in state.items():
        if LEFT_OUT.search(name):
            continue
        try:
            own[to_own_name(name, names, encoder_family)] = value
        except KeyError:
            unknown.append(name)
    if left_out:
        log.info("%s: left out %d entries that are not needed, e.g. %s.", where, len(left_out), left_out[0])
    if unknown:
        raise CheckpointError(f"{where}: {_count(unknown)} not of the reference's generator.{_hint(unknown, state)}")
    return own


def to_reference_state(state: Mapping[str, Tensor], encoder_family: str) -> dict[str, Tensor]:
    """The inverse of `to_own_state`."""
    return {to_reference_name(name, family=encoder_family): value for name, value in state.items()}


def _count(names: list[str]) -> str:
    return f"the weight {names[0]!r} is" if len(names) == 1 else f"{len(names)} weights, e.g. {names[0]!r}, are"


def _hint(unknown: list[str], state: Mapping[str, Tensor]) -> str:
    if len(unknown) == len(state) and all(name.startswith("module.") for name in unknown):
        return " All begin with `module.`, as DataParallel names them: save the state dict of the module inside."
    if all(name.startswith((ENCODER, "compression.", "alignment.", "decoder.")) for name in unknown):
        return " They have this project's names: give its checkpoint folder instead."
    return " Expected names vfm_encoder..., ldm_adapter..., mapping..., synthesis...."


def _state_dict(value: Any, where: str) -> Mapping[str, Tensor]:
    """Checked to be one. Raises CheckpointError that says what it is instead."""
    if not isinstance(value, Mapping):
        raise CheckpointError(f"{where} is {type(value).__name__}, expected a state dict.")
    for name, tensor in value.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(f"{where}: entry {name!r} is {type(tensor).__name__}, expected a tensor.")
    return value
